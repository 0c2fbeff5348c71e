"""Metrics of a multi-label prediction, from labels and probabilities alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import average_precision_score

from rdcache.distillation.randomness import counted_generator

RESAMPLES = 1000
MOST_IN_BOOTSTRAP = 200_000  # labels; beyond, the interval is narrow, and would take minutes


def multilabel_metrics(
    labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    """Every metric that a result reports but the interval of the AUROC, which takes longer.

    Args:
        labels: int64 (n, L), one 0/1 per class.
        probabilities: (n, L).
        classes: names of the L classes.

    Returns:
        `n`; `auroc` and `average_precision` (means over the classes that are neither always nor
        never there; None without any), `accuracy` (share of all labels that are right at 0.5),
        `subset_accuracy` (share of samples with all labels right), `bce` (mean over samples and
        classes), and of each class, below `of_class`, `positives`, `auroc`, `average_precision`
        and `accuracy`.
    """
    right = (probabilities >= 0.5) == (labels == 1)
    clipped = np.clip(probabilities, 1e-12, 1 - 1e-12)
    entropy = -np.where(labels == 1, np.log(clipped), np.log1p(-clipped))
    areas = class_aurocs(labels, probabilities)
    precisions = [
        float(average_precision_score(labels[:, number], probabilities[:, number]))
        if 0 < labels[:, number].sum() < len(labels)
        else None
        for number in range(len(classes))
    ]
    return {
        "n": len(labels),
        "auroc": _mean(areas),
        "average_precision": _mean(precisions),
        "accuracy": float(right.mean()),
        "subset_accuracy": float(right.all(axis=1).mean()),
        "bce": float(entropy.mean()),
        "of_class": {
            name: {
                "positives": int(labels[:, number].sum()),
                "auroc": areas[number],
                "average_precision": precisions[number],
                "accuracy": float(right[:, number].mean()),
            }
            for number, name in enumerate(classes)
        },
    }


def class_aurocs(labels: np.ndarray, probabilities: np.ndarray) -> list[float | None]:
    """Area under the ROC curve of each class; None where it is always or never there."""
    ranked = [_Ranked(labels[:, it], probabilities[:, it]) for it in range(labels.shape[1])]
    everything = np.ones(len(labels), np.int64)
    return [each.area(everything) for each in ranked]


def auroc_interval(
    labels: np.ndarray, probabilities: np.ndarray, coverage: float = 0.95
) -> tuple[float, float] | None:
    """Percentile bootstrap interval of the macro-AUROC over samples, the same at every call; None
    where the AUROC is none, or there are too many labels.
    """
    n = len(labels)
    if labels.size > MOST_IN_BOOTSTRAP:
        return None
    ranked = [_Ranked(labels[:, it], probabilities[:, it]) for it in range(labels.shape[1])]
    generator = counted_generator("bootstrap of labels", n)
    areas = []
    for _ in range(RESAMPLES):
        times = np.bincount(generator.integers(n, size=n), minlength=n)
        areas.append(_mean([each.area(times) for each in ranked]))
    known = [area for area in areas if area is not None]
    if not known:
        return None
    low, high = np.quantile(known, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


class _Ranked:
    """One class's samples in the order of their probabilities, sorted once for all resamples."""

    def __init__(self, labels: np.ndarray, probabilities: np.ndarray) -> None:
        self._order = np.argsort(probabilities, kind="stable")
        values = probabilities[self._order]
        self._starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])  # ties together
        self._positive = labels[self._order] == 1

    def area(self, times: np.ndarray) -> float | None:
        """The AUROC where each sample counts so many times: the share of pairs in order, ties half.

        Args:
            times: int64 (n,).
        """
        counts = times[self._order]
        positive = np.add.reduceat(np.where(self._positive, counts, 0), self._starts)
        negative = np.add.reduceat(np.where(self._positive, 0, counts), self._starts)
        pairs = positive.sum() * negative.sum()
        if not pairs:
            return None
        below = np.cumsum(negative) - negative
        return float((positive * (below + 0.5 * negative)).sum() / pairs)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
