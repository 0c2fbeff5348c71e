"""Paired gains and their intervals, against a plain float64 computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from rdcache.report import Row, as_markdown, compare, in_percent, paired_gain, plain_table


def row(method: str, *accuracies: float) -> Row:
    return Row("busi", "t", "s", method, {"accuracy": dict(enumerate(accuracies))})


def test_a_gain_is_the_mean_of_paired_differences_with_students_interval() -> None:
    base, better = [0.70, 0.74, 0.71, 0.69], [0.75, 0.76, 0.79, 0.70]
    gain = paired_gain(dict(enumerate(better)), dict(enumerate(base)))
    differences = np.subtract(better, base)
    low, high = stats.t.interval(0.95, 3, loc=differences.mean(), scale=differences.std(ddof=1) / 2)
    assert gain is not None
    assert (gain.mean, gain.low, gain.high) == pytest.approx((differences.mean(), low, high))


def test_only_common_seeds_are_paired() -> None:
    gain = paired_gain({0: 0.9, 1: 0.8}, {1: 0.7, 2: 0.1})
    assert gain is not None
    assert gain.mean == pytest.approx(0.1)
    assert gain.pairs == 1
    assert math.isinf(gain.high)
    assert paired_gain({0: 0.9}, {1: 0.7}) is None


def test_the_baseline_has_no_gain_over_itself_and_other_rows_do() -> None:
    plain, rd = compare([row("none", 0.7, 0.7), row("rd", 0.8, 0.9)])
    assert plain.gain is None
    assert rd.gain is not None
    assert rd.gain.mean == pytest.approx(0.15)


def test_a_row_of_another_dataset_is_no_baseline() -> None:
    other = Row("covid", "t", "s", "none", {"accuracy": {0: 0.1}})
    assert compare([other, row("rd", 0.8)])[1].gain is None


def test_a_plain_student_stands_beside_any_teacher_if_it_was_trained_alike() -> None:
    plain = Row("busi", "t", "s", "none", {"accuracy": {0: 0.5}}, training={"views": 8})
    other = Row("busi", "u", "s", "rd", {"accuracy": {0: 0.6}}, training={"views": 8})
    fewer = Row("busi", "u", "s", "kd", {"accuracy": {0: 0.6}}, training={"views": 2})
    assert [item.base for item in compare([plain, other, fewer])] == [None, plain, None]
    direct = Row("busi", "t", "s", "direct", {"accuracy": {0: 0.5}}, training={"views": 8})
    assert compare([direct, other], baseline="direct")[1].base is None


def test_the_plain_table_shows_percent_and_points() -> None:
    table = as_markdown(plain_table("t", compare([row("none", 0.70, 0.72), row("rd", 0.80, 0.82)])))
    assert "| busi | t | s | none | 71.0 ± 1.4 | – | – | – |  | 2 |" in table
    assert "| busi | t | s | rd | 81.0 ± 1.4 | – | – | – | +10.0 (+10.0 to +10.0) | 2 |" in table
    assert in_percent([0.5]) == "50.0"
