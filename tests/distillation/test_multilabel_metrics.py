"""Multi-label metrics against scikit-learn and against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from rdcache.distillation.multilabel_metrics import (
    auroc_interval,
    class_aurocs,
    multilabel_metrics,
)

LABELS = np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0]])
PROBABILITIES = np.array([[0.9, 0.2, 0.1], [0.4, 0.7, 0.1], [0.3, 0.5, 0.6], [0.2, 0.5, 0.2]])


def drawn(n: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = (random.random((n, 3)) < (0.5, 0.2, 0.1)).astype(np.int64)
    return labels, np.round(np.clip(random.random((n, 3)) * 0.7 + 0.3 * labels, 0, 1), 2)


def test_every_metric_of_a_small_case() -> None:
    metrics = multilabel_metrics(LABELS, PROBABILITIES, ("a", "b", "c"))
    assert metrics["n"] == 4
    assert metrics["of_class"]["a"]["auroc"] == pytest.approx(3 / 4)
    assert metrics["of_class"]["b"]["auroc"] == pytest.approx(3.5 / 4)  # one tie
    assert metrics["of_class"]["c"]["auroc"] is None  # never there
    assert metrics["auroc"] == pytest.approx((0.75 + 0.875) / 2)
    assert metrics["accuracy"] == pytest.approx(9 / 12)
    assert metrics["subset_accuracy"] == pytest.approx(2 / 4)
    chosen = np.where(LABELS == 1, PROBABILITIES, 1 - PROBABILITIES)
    assert metrics["bce"] == pytest.approx(-np.log(chosen).mean())
    assert metrics["of_class"]["a"]["positives"] == 2
    # Class a in order: right, wrong, right, so precisions 1 and 2/3; b: right, then two tied.
    assert metrics["of_class"]["a"]["average_precision"] == pytest.approx((1 + 2 / 3) / 2)


def test_aurocs_are_those_of_scikit_learn_ties_included() -> None:
    labels, probabilities = drawn(200)
    expected = [roc_auc_score(labels[:, it], probabilities[:, it]) for it in range(3)]
    assert class_aurocs(labels, probabilities) == pytest.approx(expected)


def test_the_interval_of_the_auroc_is_of_samples_drawn_anew() -> None:
    labels, probabilities = drawn(60)
    interval = auroc_interval(labels, probabilities)
    assert interval is not None
    low, high = interval
    mean = multilabel_metrics(labels, probabilities, ("a", "b", "c"))["auroc"]
    assert low < mean < high
    assert auroc_interval(labels, probabilities) == interval
    assert auroc_interval(np.zeros((4, 2), np.int64), np.zeros((4, 2))) is None
