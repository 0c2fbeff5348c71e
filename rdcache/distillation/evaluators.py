"""What a student's outputs are worth in each task: predictions, their metrics, their table.

The loop, the result file and `rdcache evaluate` know no task by name: they ask the evaluator of the
dataset. Classification is here, segmentation in `segmentation_evaluator.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol, Self

import numpy as np
import torch

from rdcache.data import ImageDataset
from rdcache.distillation.batches import CleanViews
from rdcache.distillation.evaluation import (
    Predictions,
    WithFeatures,
    as_csv,
    collected,
    labels_as_csv,
    predict,
)
from rdcache.distillation.metrics import classification_metrics
from rdcache.distillation.multilabel_metrics import auroc_interval, multilabel_metrics
from rdcache.errors import UsageError
from rdcache.models import Student

Outputs = list[tuple[torch.Tensor, torch.Tensor]]


class Predicted(WithFeatures, Protocol):
    """What a student says about some samples, whatever the task."""

    def only(self, wanted: np.ndarray) -> Self:
        """Keep the samples where a bool (n,) mask is true."""


class Evaluator(ABC):
    """How students are judged on a dataset.

    Args:
        dataset: the images, with their labels or masks.
        classes: names of the classes.

    Attributes:
        headline: the metric that a table shows, larger being better.
        selectable: metrics that an epoch can be selected by, and that its line tells.
        watched: what else that line tells.
    """

    headline: ClassVar[str]
    selectable: ClassVar[tuple[str, ...]]
    watched: ClassVar[tuple[str, ...]] = ()

    def __init__(self, dataset: ImageDataset, classes: Sequence[str]) -> None:
        self.dataset, self.classes = dataset, tuple(classes)

    def selected(self, metric: str | None) -> str:
        """The metric that epochs are selected by; None: the headline.

        Raises:
            UsageError: none of this task.
        """
        if metric is not None and metric not in self.selectable:
            raise UsageError(
                f"no epoch of this task can be selected by its {metric}.",
                given=f"--select-metric {metric}",
                known=", ".join(self.selectable),
            )
        return metric or self.headline

    @abstractmethod
    def predict(
        self,
        student: Student,
        samples: np.ndarray,
        clean: CleanViews,
        autocast: AbstractContextManager[object],
    ) -> Predicted:
        """What a student says about samples, in evaluation mode, as it is reported.

        Raises:
            TrainingError: NaN or Inf.
        """

    def validate(
        self,
        student: Student,
        samples: np.ndarray,
        clean: CleanViews,
        autocast: AbstractContextManager[object],
    ) -> tuple[dict[str, float], Predicted | None]:
        """Numbers to select an epoch by, `selectable` and `watched`, as cheap as they can be had.

        Returns:
            The numbers, and the predictions where features are to be compared.
        """
        predictions = self.predict(student, samples, clean, autocast)
        return self.numbers(predictions), predictions

    def numbers(self, predictions: Any) -> dict[str, float]:
        """What the line of an epoch tells of predictions."""
        metrics = self.metrics(predictions, quick=True)
        return {name: metrics[name] for name in (*self.selectable, *self.watched)}

    def of_outputs(self, outputs: Outputs, samples: np.ndarray) -> Any:
        """Predictions from batches of features and logits; of a teacher branch, for example."""
        raise NotImplementedError

    def of_teacher(self, predictions: Any) -> dict[str, float]:
        """What the line of an epoch tells of a teacher branch."""
        raise NotImplementedError

    @abstractmethod
    def metrics(self, predictions: Any, quick: bool = False) -> dict[str, Any]:
        """Every metric as JSON values.

        Args:
            quick: leave out what takes long, such as intervals.
        """

    @abstractmethod
    def as_csv(self, predictions: Any, uids: Sequence[str]) -> str:
        """One line a sample."""


class MulticlassEvaluator(Evaluator):
    """One class for each image or volume."""

    headline = "accuracy"
    selectable: ClassVar[tuple[str, ...]] = ("accuracy", "balanced_accuracy")
    watched: ClassVar[tuple[str, ...]] = ("nll",)
    multilabel: ClassVar[bool] = False

    def predict(
        self,
        student: Student,
        samples: np.ndarray,
        clean: CleanViews,
        autocast: AbstractContextManager[object],
    ) -> Predictions:
        """Classify the clean views."""
        labels = self.dataset.labels[samples]
        images = clean.images(samples)
        return predict(student, images, samples, labels, autocast, multilabel=self.multilabel)

    def of_outputs(self, outputs: Outputs, samples: np.ndarray) -> Predictions:
        """Probabilities of the logits."""
        return collected(outputs, samples, self.dataset.labels[samples], self.multilabel)

    def metrics(self, predictions: Predictions, quick: bool = False) -> dict[str, Any]:
        """Those of `classification_metrics`."""
        return classification_metrics(predictions.labels, predictions.probabilities, self.classes)

    def of_teacher(self, predictions: Predictions) -> dict[str, float]:
        """Its accuracy and log loss alone."""
        right = predictions.probabilities.argmax(axis=1) == predictions.labels
        likelihood = predictions.probabilities[np.arange(len(right)), predictions.labels]
        nll = float(-np.log(np.maximum(likelihood, 1e-12)).mean())
        return {"accuracy": float(right.mean()), "nll": nll}

    def as_csv(self, predictions: Predictions, uids: Sequence[str]) -> str:
        """The label, and the probability of each class."""
        return as_csv(predictions, uids, self.classes)


class MultilabelEvaluator(MulticlassEvaluator):
    """Any number of findings for each image or volume."""

    headline = "auroc"
    selectable = ("auroc", "average_precision", "accuracy")
    watched = ("bce",)
    multilabel = True

    def numbers(self, predictions: Predictions) -> dict[str, float]:
        """An epoch in which a metric is of no class, and None, is none that is chosen for it."""
        return {
            name: -1.0 if it is None else it for name, it in super().numbers(predictions).items()
        }

    def of_teacher(self, predictions: Predictions) -> dict[str, float]:
        """Its headline and log loss alone."""
        numbers = self.numbers(predictions)
        return {name: numbers[name] for name in (self.headline, *self.watched)}

    def metrics(self, predictions: Predictions, quick: bool = False) -> dict[str, Any]:
        """Those of `multilabel_metrics`, and the interval of the AUROC."""
        labels, probabilities = predictions.labels, predictions.probabilities
        metrics = multilabel_metrics(labels, probabilities, self.classes)
        if not quick and (interval := auroc_interval(labels, probabilities)):
            metrics["auroc_ci95"] = list(interval)
        return metrics

    def as_csv(self, predictions: Predictions, uids: Sequence[str]) -> str:
        """Of each class the label and the probability."""
        return labels_as_csv(predictions, uids, self.classes)


def evaluator_for(
    dataset: ImageDataset, classes: Sequence[str], tolerance: float | None = None
) -> Evaluator:
    """The evaluator of a dataset's task.

    Args:
        tolerance: of the NSD of a segmentation, in pixels or millimetres.
    """
    if dataset.task == "segmentation":
        # Which imports this module.
        from rdcache.distillation import segmentation_evaluator as segmentation

        kind = (
            segmentation.VolumeSegmentationEvaluator
            if dataset.dimensions == 3
            else segmentation.ImageSegmentationEvaluator
        )
        return kind(dataset, classes, tolerance)
    several = dataset.task == "multilabel"
    return (MultilabelEvaluator if several else MulticlassEvaluator)(dataset, classes)
