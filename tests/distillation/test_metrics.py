"""Metrics against values worked out by hand, and against their definitions."""

from __future__ import annotations

import numpy as np
import pytest

from rdcache.distillation.metrics import (
    bootstrap_interval,
    calibration_error,
    classification_metrics,
    macro_auroc,
)

CLASSES = ("a", "b", "c")
TARGETS = np.array([0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array(
    [
        [0.8, 0.1, 0.1],
        [0.6, 0.3, 0.1],
        [0.2, 0.7, 0.1],  # wrong
        [0.1, 0.8, 0.1],
        [0.3, 0.2, 0.5],  # wrong
        [0.1, 0.1, 0.8],
    ]
)


def test_every_metric_of_a_small_case() -> None:
    metrics = classification_metrics(TARGETS, PROBABILITIES, CLASSES)
    assert metrics["n"] == 6
    assert metrics["accuracy"] == pytest.approx(4 / 6)
    assert metrics["recall"] == pytest.approx({"a": 2 / 3, "b": 1 / 2, "c": 1.0})
    assert metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    # precision: a 2/2, b 1/2, c 1/2
    assert metrics["macro_f1"] == pytest.approx((0.8 + 0.5 + 2 / 3) / 3)
    assert metrics["confusion"] == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert metrics["nll"] == pytest.approx(-np.log([0.8, 0.6, 0.2, 0.8, 0.2, 0.8]).mean())


def test_auroc_is_the_share_of_pairs_in_the_right_order_averaged_over_classes() -> None:
    areas = []
    for number in range(3):
        of_class = np.isin(TARGETS, number)
        inside, outside = PROBABILITIES[of_class, number], PROBABILITIES[~of_class, number]
        pairs = [1.0 if i > o else 0.5 if i == o else 0.0 for i in inside for o in outside]
        areas.append(np.mean(pairs))
    assert macro_auroc(TARGETS, PROBABILITIES) == pytest.approx(np.mean(areas))


def test_classes_that_do_not_occur_are_left_out_of_means() -> None:
    metrics = classification_metrics(TARGETS[:5], PROBABILITIES[:5], CLASSES)
    assert metrics["recall"].keys() == {"a", "b"}
    assert metrics["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert metrics["auroc"] is not None
    assert macro_auroc(np.zeros(4, int), PROBABILITIES[:4]) is None


def test_macro_f1_leaves_out_classes_that_do_not_occur() -> None:
    labels = np.array([0, 0, 1, 1])
    perfect = np.eye(3)[labels]
    assert classification_metrics(labels, perfect, ("a", "b", "c"))["macro_f1"] == 1.0


def test_calibration_error_follows_its_definition() -> None:
    random = np.random.default_rng(0)
    confidence, correct = random.uniform(0.3, 1, 500), random.random(500) < 0.6
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            gap = abs(correct[inside].mean() - confidence[inside].mean())
            expected += inside.mean() * gap
    assert calibration_error(correct, confidence) == pytest.approx(expected)
    assert calibration_error(np.ones(5, bool), np.ones(5)) == 0


def test_the_bootstrap_interval_has_the_width_of_a_binomial_and_repeats() -> None:
    correct = np.arange(200) < 150
    low, high = bootstrap_interval(correct)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 200)
    assert low == pytest.approx(0.75 - half, abs=0.01)
    assert high == pytest.approx(0.75 + half, abs=0.01)
    assert bootstrap_interval(correct) == (low, high)
    assert bootstrap_interval(np.ones(9, bool)) == (1, 1)
