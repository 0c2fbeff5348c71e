"""Predictions of a student, or of a method's teacher branch, on the clean view."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from rdcache import losses
from rdcache.errors import TrainingError
from rdcache.methods import Method


@dataclass(frozen=True)
class Predictions:
    """What a classifier says about some samples.

    Attributes:
        samples: int64 (n,), sample numbers.
        labels: int64 (n,); multi-label (n, L), 0 or 1 for each class.
        probabilities: float64 (n, C), of one class each; multi-label (n, L), of each by itself.
        features: float32 (n, D), before the classifier.
    """

    samples: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray

    def only(self, wanted: np.ndarray) -> Predictions:
        """Keep the samples where a bool (n,) mask is true."""
        return Predictions(
            self.samples[wanted],
            self.labels[wanted],
            self.probabilities[wanted],
            self.features[wanted],
        )


class WithFeatures(Protocol):
    """Predictions with the features that they were made from."""

    @property
    def samples(self) -> np.ndarray:
        """Sample numbers: int64 (n,)."""

    @property
    def features(self) -> np.ndarray:
        """What the last layer sees: float32 (n, D)."""


@torch.no_grad()
def predict(
    student: nn.Module,
    images: Iterable[torch.Tensor],
    samples: np.ndarray,
    labels: np.ndarray,
    autocast: AbstractContextManager[object] | None = None,
    *,
    multilabel: bool = False,
) -> Predictions:
    """Classify batches of images, given in the order of `samples`, in evaluation mode.

    Args:
        student: gives `features` and `logits` for a batch.
        multilabel: whether each class is there or not by itself.
    """
    student.eval()
    outputs = []
    with autocast or nullcontext():
        for batch in images:
            output = student(batch)
            outputs.append((output.features, output.logits))
    return collected(outputs, samples, labels, multilabel)


@torch.no_grad()
def outputs_of_teacher(
    method: Method, taps: Iterable[dict[str, torch.Tensor]]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Features and logits of a method's teacher branch for batches of cached taps, in evaluation
    mode.
    """
    method.eval()
    return [method.teacher_branch(batch) for batch in taps]


def similarity(student: WithFeatures, teacher: WithFeatures) -> float | None:
    """Unbiased CKA of two branches' features over the samples that both have seen."""
    _, own, other = np.intersect1d(student.samples, teacher.samples, return_indices=True)
    if len(own) < losses.MIN_SAMPLES:
        return None
    x, y = torch.from_numpy(student.features[own]), torch.from_numpy(teacher.features[other])
    return float(losses.cka(x, y))


def as_csv(predictions: Predictions, uids: Sequence[str], classes: Sequence[str]) -> str:
    """One line a sample: uid, label, and the probability of each class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["uid", "label", "predicted", *(f"p_{name}" for name in classes)])
    for sample, label, row in zip(
        predictions.samples, predictions.labels, predictions.probabilities, strict=True
    ):
        predicted = classes[int(row.argmax())]
        writer.writerow(
            [uids[sample], classes[label], predicted, *(f"{value:.7g}" for value in row)]
        )
    return text.getvalue()


def labels_as_csv(predictions: Predictions, uids: Sequence[str], classes: Sequence[str]) -> str:
    """One line a sample: uid, and of each class its label and its probability."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["uid", *(f"{what}_{name}" for name in classes for what in ("label", "p"))])
    for sample, labels, row in zip(
        predictions.samples, predictions.labels, predictions.probabilities, strict=True
    ):
        pairs = zip(labels.tolist(), row.tolist(), strict=True)
        cells = [text for label, p in pairs for text in (str(label), f"{p:.7g}")]
        writer.writerow([uids[sample], *cells])
    return text.getvalue()


def collected(
    outputs: list[tuple[torch.Tensor, torch.Tensor]],
    samples: np.ndarray,
    labels: np.ndarray,
    multilabel: bool = False,
) -> Predictions:
    """Batches of features and logits as predictions.

    Raises:
        TrainingError: NaN or Inf among them.
    """
    features = torch.cat([features.float().cpu() for features, _ in outputs])
    logits = torch.cat([logits.double().cpu() for _, logits in outputs])
    require_finite(logits)
    probabilities = logits.sigmoid() if multilabel else logits.softmax(dim=1)
    return Predictions(samples, labels, probabilities.numpy(), features.numpy())


def require_finite(logits: torch.Tensor) -> None:
    """Refuse outputs that mean nothing.

    Raises:
        TrainingError: NaN or Inf among them.
    """
    if not torch.isfinite(logits).all():
        raise TrainingError(
            "the network gives NaN or Inf: training has diverged.",
            next="a smaller --lr, or --clip 1",
        )


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of a module's state on the CPU."""
    return tensors_of(module.state_dict())


def tensors_of(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """A copy on the CPU of the tensors in a state; counters and the like are left out."""
    return {
        name: value.detach().cpu().clone()
        for name, value in state.items()
        if isinstance(value, torch.Tensor)
    }
