"""A teacher's input, live: views of the images, cut and normalised as an extraction does it.

Training views are jittered in brightness and contrast; validation and test images are seen through
the clean view, as they will be in phase 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from rdcache.data import CLEAN_VIEW, ImageDataset, Jitter, StudentInputs, ViewSpec, view_parameters
from rdcache.distillation.batches import (
    EVALUATION_BATCH,
    made_ahead,
    made_between,
)
from rdcache.distillation.randomness import counted_generator
from rdcache.distillation.sampling import Picks
from rdcache.errors import UsageError
from rdcache.models import Teacher

WORKING_SCALE = 2.0  # training images need no more pixels for each of the teacher's


class LiveImages:
    """Batches of a dataset's images for a teacher.

    Args:
        spec: the views of training images.
        jitter: largest change of brightness and contrast.
        device: where batches go.

    Attributes:
        views: how many views a training image has.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        teacher: Teacher,
        spec: ViewSpec,
        jitter: float,
        device: torch.device,
    ) -> None:
        self.dataset, self.device, self.views = dataset, device, spec.count
        self._memory_format = teacher.memory_format
        like = teacher.of_images
        if like.scaling != "fixed":
            raise UsageError(
                f"{teacher.name} scales each image by its own darkest and brightest pixel, which "
                "`rdcache adapt` does not do.",
                next="another teacher; see `rdcache list teachers`",
            )
        self._mirrored_channels = like.channels == "bgr"
        step = -1 if self._mirrored_channels else 1
        self._inputs = StudentInputs(
            dataset,
            view_parameters(spec, dataset.uids, [sample.size for sample in dataset.samples]),
            like.size,
            like.mean[::step],
            like.std[::step],
            Jitter(jitter, jitter) if jitter else None,
            working_scale=WORKING_SCALE,
            interpolation=like.interpolation,
        )

    def __str__(self) -> str:
        """Where images are kept, in a few words."""
        return str(self._inputs)

    def training(
        self, batches: Sequence[Picks], *key: str | int
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Images float32 (B, 3, S, S) and labels (B,) of some batches, in order; their jitter is
        drawn by key and step.
        """

        def make(step: int) -> tuple[torch.Tensor, torch.Tensor]:
            picks, generator = batches[step], counted_generator("jitter", *key, step)
            labels = torch.from_numpy(self.dataset.labels[picks.samples])
            images = self._images(picks.samples, picks.views, generator)
            return self._pinned(images), self._pinned(labels)

        arrange = made_between if self.device.type == "cpu" else made_ahead
        for images, labels in arrange(make, len(batches)):
            yield (
                images.to(self.device, non_blocking=True),
                labels.to(self.device, non_blocking=True),
            )

    def clean(self, samples: np.ndarray) -> Iterator[torch.Tensor]:
        """Images of the clean view in batches, in order."""
        parts = [
            samples[start : start + EVALUATION_BATCH]
            for start in range(0, len(samples), EVALUATION_BATCH)
        ]

        def make(number: int) -> torch.Tensor:
            part = parts[number]
            return self._images(part, np.full(len(part), CLEAN_VIEW), None)

        for images in made_ahead(make, len(parts)):
            yield images.to(self.device, non_blocking=True)

    def _images(
        self, samples: np.ndarray, views: np.ndarray, generator: np.random.Generator | None
    ) -> torch.Tensor:
        images = self._inputs.batch(samples, views, generator)
        images = images.flip(1) if self._mirrored_channels else images
        return images.contiguous(memory_format=self._memory_format)

    def _pinned(self, images: torch.Tensor) -> torch.Tensor:
        """Where a GPU can fetch them while it computes."""
        return images.pin_memory() if self.device.type == "cuda" else images
