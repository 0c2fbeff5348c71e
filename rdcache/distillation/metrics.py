"""Metrics of a multiclass prediction, from labels and probabilities alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score

from rdcache.distillation.randomness import counted_generator

CALIBRATION_BINS = 15
RESAMPLES = 10_000


def classification_metrics(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Every metric that a result reports, as JSON values; fractions, not per cent.

    Args:
        labels: int64 (n,).
        probabilities: (n, C), rows sum to 1.
        classes: names of the C classes.

    Returns:
        `n`, `accuracy`, `accuracy_ci95` (95 %, bootstrap), `balanced_accuracy` and `macro_f1`
        (means over the classes that occur), `auroc` (mean over one-versus-rest, None where only
        one class occurs), `ece` (15 bins), `nll`, `recall` of the classes that occur, and
        `confusion` (rows: labels, columns: predictions).
    """
    predicted = probabilities.argmax(axis=1)
    correct = predicted == labels
    numbers = np.arange(len(classes))
    confusion = confusion_matrix(labels, predicted, labels=numbers)
    occurring = confusion.sum(axis=1) > 0
    recalls = np.diag(confusion)[occurring] / confusion.sum(axis=1)[occurring]
    recall = {
        classes[int(number)]: float(value)
        for number, value in zip(np.flatnonzero(occurring), recalls, strict=True)
    }
    likelihood = probabilities[np.arange(len(labels)), labels]
    return {
        "n": len(labels),
        "accuracy": float(correct.mean()),
        "accuracy_ci95": list(bootstrap_interval(correct)),
        "balanced_accuracy": float(recalls.mean()),
        "macro_f1": float(
            f1_score(labels, predicted, labels=numbers[occurring], average="macro", zero_division=0)
        ),
        "auroc": macro_auroc(labels, probabilities),
        "ece": calibration_error(correct, probabilities.max(axis=1)),
        "nll": float(-np.log(np.clip(likelihood, 1e-12, None)).mean()),
        "recall": recall,
        "confusion": confusion.tolist(),
    }


def macro_auroc(labels: np.ndarray, probabilities: np.ndarray) -> float | None:
    """Area under the ROC curve, one class against the rest, averaged over classes that occur."""
    areas = [
        roc_auc_score(labels == number, probabilities[:, number])
        for number in range(probabilities.shape[1])
        if 0 < np.count_nonzero(labels == number) < len(labels)
    ]
    return float(np.mean(areas)) if areas else None


def calibration_error(
    correct: np.ndarray, confidence: np.ndarray, bins: int = CALIBRATION_BINS
) -> float:
    """Expected calibration error: |accuracy − confidence| over equal bins of the confidence.

    Args:
        correct: bool (n,).
        confidence: (n,), probability of the predicted class.
    """
    edges = np.linspace(0, 1, bins + 1)
    bin_of = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, bins - 1)
    gaps = [
        abs(correct[bin_of == number].mean() - confidence[bin_of == number].mean())
        * np.count_nonzero(bin_of == number)
        for number in np.unique(bin_of)
    ]
    return float(np.sum(gaps) / len(correct))


def bootstrap_interval(correct: np.ndarray, coverage: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of an accuracy, the same at every call.

    Drawing n hits and misses with replacement is one draw from a binomial distribution.
    """
    n = len(correct)
    generator = counted_generator("bootstrap", n, int(np.count_nonzero(correct)))
    accuracies = generator.binomial(n, correct.mean(), RESAMPLES) / n
    low, high = np.quantile(accuracies, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)
