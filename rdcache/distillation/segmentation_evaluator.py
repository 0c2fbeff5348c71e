"""How segmentations are judged: case by case, on the grid that the true masks were drawn on.

An image is looked at through its clean view, and the student's logits are resized to the pixels
that the view covers. A volume is looked at through a window of the student's size that slides over
all of it. Every epoch only what the clean view shows is compared, at the student's own size; of
volumes a few patches.
"""

from __future__ import annotations

import csv
import io
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from rdcache.data import CLEAN_VIEW, ImageDataset, require_volumes
from rdcache.distillation.batches import CleanViews
from rdcache.distillation.evaluation import require_finite
from rdcache.distillation.evaluators import Evaluator, Outputs
from rdcache.distillation.mask_metrics import (
    MaskScores,
    case_scores,
    confusion,
    overlaps,
    overlaps_of,
)
from rdcache.distillation.segmentation_metrics import segmentation_metrics
from rdcache.distillation.whole_images import image_logits, volume_labels
from rdcache.models import Student

VALIDATED_VIEWS = 4  # of a volume, the central patch among them
SCORES = ("dice", "iou", "hd95", "nsd", "volume_error")


@dataclass(frozen=True)
class ScoredCases:
    """What a student's masks are worth.

    Attributes:
        samples: int64 (n,), sample numbers.
        scores: of each case, each of its foreground classes.
        present: bool (n, C − 1), whether a true mask has the class.
    """

    samples: np.ndarray
    scores: tuple[MaskScores, ...]
    present: np.ndarray

    @property
    def features(self) -> np.ndarray:
        """None that are compared: float32 (n, 0)."""
        return np.zeros((len(self.samples), 0), np.float32)

    def only(self, wanted: np.ndarray) -> ScoredCases:
        """Keep the samples where a bool (n,) mask is true."""
        kept = tuple(it for it, keep in zip(self.scores, wanted, strict=True) if keep)
        return ScoredCases(self.samples[wanted], kept, self.present[wanted])


class SegmentationEvaluator(Evaluator):
    """A class for each pixel.

    Args:
        tolerance: of the NSD, in the unit of distances (default: `default_tolerance`).
    """

    headline = "dice"
    selectable = ("dice", "iou")
    unit: ClassVar[str] = "px"
    default_tolerance: ClassVar[float] = 2.0

    def __init__(
        self, dataset: ImageDataset, classes: Sequence[str], tolerance: float | None = None
    ) -> None:
        super().__init__(dataset, classes)
        self.tolerance = self.default_tolerance if tolerance is None else tolerance

    @torch.no_grad()
    def predict(
        self,
        student: Student,
        samples: np.ndarray,
        clean: CleanViews,
        autocast: AbstractContextManager[object],
    ) -> ScoredCases:
        """Score the masks of whole images or volumes."""
        student.eval()
        count = len(self.classes)
        scores, present = [], []
        with autocast:
            for predicted, truth, spacing in self._cases(student, samples, clean):
                scores.append(case_scores(predicted, truth, count, spacing, self.tolerance))
                present.append(np.bincount(truth.ravel(), minlength=count)[1:] > 0)
        return ScoredCases(samples, tuple(scores), np.stack(present))

    def validate(
        self,
        student: Student,
        samples: np.ndarray,
        clean: CleanViews,
        autocast: AbstractContextManager[object],
    ) -> tuple[dict[str, float], None]:
        """Overlaps of what the clean view shows, over cases and classes."""
        each = [
            overlaps(own, truth, len(self.classes))
            for pair in self._shown(student, samples, clean, autocast)
            for own, truth in zip(*pair, strict=True)
        ]
        dice, iou = (float(np.mean([pair[which] for pair in each])) for which in (0, 1))
        return {"dice": dice, "iou": iou}, None

    @torch.no_grad()
    def _shown(
        self,
        student: Student,
        samples: np.ndarray,
        clean: CleanViews,
        autocast: AbstractContextManager[object],
        view: int = CLEAN_VIEW,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Predicted and true class numbers of what a view shows, (B, *spatial), in batches."""
        student.eval()
        batches = zip(clean.images(samples, view), clean.masks(samples, view), strict=True)
        with autocast:
            for images, masks in batches:
                logits = student(images).logits
                require_finite(logits)
                yield logits.argmax(dim=1).cpu().numpy(), masks.numpy()

    def of_outputs(self, outputs: Outputs, samples: np.ndarray) -> ScoredCases:
        """Refuse: methods classify by their teacher branch, if they have one."""
        raise NotImplementedError

    def metrics(self, predictions: ScoredCases, quick: bool = False) -> dict[str, Any]:
        """Those of `segmentation_metrics`."""
        return segmentation_metrics(
            predictions.scores, predictions.present, self.classes, self.unit, self.tolerance
        )

    def as_csv(self, predictions: ScoredCases, uids: Sequence[str]) -> str:
        """One line a case: uid, the mean Dice, and each class's scores; empty where undefined."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        names = self.classes[1:]
        columns = [f"{score}_{name}" for name in names for score in SCORES]
        writer.writerow(["uid", "dice", *columns])
        for sample, scores in zip(predictions.samples, predictions.scores, strict=True):
            table = [getattr(scores, score) for score in SCORES]
            cells = [
                "" if np.isnan(values[number]) else f"{values[number]:.7g}"
                for number in range(len(names))
                for values in table
            ]
            writer.writerow([uids[sample], f"{scores.dice.mean():.7g}", *cells])
        return text.getvalue()

    @abstractmethod
    def _cases(
        self, student: Student, samples: np.ndarray, clean: CleanViews
    ) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
        """Of each sample, in order: predicted and true class numbers, and their spacing."""


class ImageSegmentationEvaluator(SegmentationEvaluator):
    """Masks of images, compared at the images' own size; distances in pixels."""

    def _cases(
        self, student: Student, samples: np.ndarray, clean: CleanViews
    ) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
        boxes = clean.inputs.parameters[CLEAN_VIEW]
        for part, images in zip(clean.parts(samples), clean.images(samples), strict=True):
            logits = student(images).logits.float()
            require_finite(logits)
            for sample, own in zip(part.tolist(), logits, strict=True):
                truth = self.dataset.decode_mask(sample)
                height, width = truth.shape
                whole = image_logits(own, boxes[sample], (height, width))
                yield whole.argmax(dim=0).to(torch.uint8).cpu().numpy(), truth, (1.0, 1.0)


class VolumeSegmentationEvaluator(SegmentationEvaluator):
    """Masks of volumes, compared at the spacing that they were drawn at; distances in mm."""

    unit = "mm"
    default_tolerance = 1.0

    def validate(
        self,
        student: Student,
        samples: np.ndarray,
        clean: CleanViews,
        autocast: AbstractContextManager[object],
    ) -> tuple[dict[str, float], None]:
        """Overlaps of some patches of each case, of the voxels of all of them together. Most show
        nothing of a small organ; by itself such a patch is right where nothing is predicted.
        """
        count = len(self.classes)
        pairs = np.zeros((count, count), np.int64)
        for view in range(min(len(clean.inputs.parameters), VALIDATED_VIEWS)):
            for predicted, truth in self._shown(student, samples, clean, autocast, view):
                pairs += confusion(predicted, truth, count)
        dice, iou = (float(each.mean()) for each in overlaps_of(pairs))
        return {"dice": dice, "iou": iou}, None

    def _cases(
        self, student: Student, samples: np.ndarray, clean: CleanViews
    ) -> Iterator[tuple[np.ndarray, np.ndarray, tuple[float, ...]]]:
        dataset = require_volumes(self.dataset)
        for sample in samples.tolist():
            volume = dataset.decode(sample)
            predicted = volume_labels(student, volume, clean.patch, clean.device)
            yield predicted, dataset.mask_at_original_spacing(sample), volume.grid.turned[1]
