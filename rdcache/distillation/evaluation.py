"""Predictions of a student, or of a method's teacher branch, on the clean view."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

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
        labels: int64 (n,).
        probabilities: float64 (n, C).
        features: float32 (n, D), before the classifier.
    """

    samples: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    features: np.ndarray

    @property
    def accuracy(self) -> float:
        """Share of samples whose most probable class is their label."""
        return float((self.probabilities.argmax(axis=1) == self.labels).mean())

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood of the labels."""
        likelihood = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(-np.log(np.maximum(likelihood, 1e-12)).mean())

    def only(self, wanted: np.ndarray) -> Predictions:
        """Keep the samples where a bool (n,) mask is true."""
        return Predictions(
            self.samples[wanted],
            self.labels[wanted],
            self.probabilities[wanted],
            self.features[wanted],
        )


@torch.no_grad()
def predict(
    student: nn.Module,
    images: Iterable[torch.Tensor],
    samples: np.ndarray,
    labels: np.ndarray,
    autocast: AbstractContextManager[object] | None = None,
) -> Predictions:
    """Classify batches of images, given in the order of `samples`, in evaluation mode.

    Args:
        student: gives `features` and `logits` for a batch.
    """
    student.eval()
    outputs = []
    with autocast or nullcontext():
        for batch in images:
            output = student(batch)
            outputs.append((output.features, output.logits))
    return _collected(outputs, samples, labels)


@torch.no_grad()
def predict_by_teacher(
    method: Method,
    taps: Iterable[dict[str, torch.Tensor]],
    samples: np.ndarray,
    labels: np.ndarray,
) -> Predictions:
    """Classify batches of cached taps by a method's teacher branch, in evaluation mode."""
    method.eval()
    outputs = [method.teacher_branch(batch) for batch in taps]
    return _collected(outputs, samples, labels)


def similarity(student: Predictions, teacher: Predictions) -> float | None:
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


def _collected(
    outputs: list[tuple[torch.Tensor, torch.Tensor]], samples: np.ndarray, labels: np.ndarray
) -> Predictions:
    features = torch.cat([features.float().cpu() for features, _ in outputs])
    logits = torch.cat([logits.double().cpu() for _, logits in outputs])
    if not torch.isfinite(logits).all():
        raise TrainingError(
            "the network gives NaN or Inf: training has diverged.",
            next="a smaller --lr, or --clip 1",
        )
    return Predictions(samples, labels, logits.softmax(dim=1).numpy(), features.numpy())


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
