"""Paired gains and their intervals, against a plain float64 computation."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from rdcache.report import Row, as_markdown, compare, paired_gain, plain_table, require_names
from rdcache.report.predictions import values_by_uid


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
    assert "| method | accuracy (%) |" in table
    assert "accuracy gain over none (95 %)" in table


def budget(method: str, epochs: int, underlying: str = "", **more: Any) -> Row:
    training = {"epochs": epochs, **more}
    values = {"accuracy": {0: 0.5 + epochs / 1000}}
    return Row("busi", "t", "s", method, values, training=training, underlying=underlying)


def test_of_several_plain_students_each_row_stands_beside_the_one_trained_alike() -> None:
    short, long = budget("none (epochs=40)", 40, "none"), budget("none (epochs=240)", 240, "none")
    rd, slow, odd = budget("rd (epochs=40)", 40), budget("rd (epochs=240)", 240), budget("kd", 60)
    compared = compare([short, long, rd, slow, odd])
    assert [item.base for item in compared] == [None, None, short, long, None]
    assert compared[4].candidates == ("none (epochs=40)", "none (epochs=240)")
    (note,) = plain_table("t", compared).notes
    assert "kd has no gain" in note
    assert "--baseline 'none (epochs=240)'" in note
    assert [item.base for item in compare([short, long, rd], baseline=long.method)] == [
        long,
        None,
        long,
    ]


def test_other_arithmetic_is_said_but_is_no_other_budget() -> None:
    plain, rd = budget("none", 40, amp="off"), budget("rd", 40, amp="bfloat16")
    item = compare([plain, rd])[1]
    assert item.base is plain
    assert item.unequal == {"amp": ("bfloat16", "off")}
    exact = budget("none (amp=bfloat16)", 40, "none", amp="bfloat16")
    other = budget("none (amp=off)", 40, "none", amp="off")
    assert compare([other, exact, rd])[2].base is exact


def test_a_gain_of_some_seeds_alone_says_of_which() -> None:
    plain, rd = compare([row("none", 0.7, 0.7), row("rd", 0.8, 0.9, 0.8)])
    (note,) = plain_table("t", [plain, rd]).notes
    assert note == "The gain of rd over none is of seeds 0, 1 alone."
    none_common = Row("busi", "t", "s", "kd", {"accuracy": {7: 0.9}})
    assert "no seed in common" in plain_table("t", compare([plain.row, none_common])).notes[0]


def test_notes_say_of_which_place_they_are() -> None:
    rows = [budget("none", 40), budget("rd", 240), Row("covid", "t", "s", "none", {})]
    (note,) = plain_table("t", compare(rows)).notes
    assert note.startswith("busi, t, s: rd is compared with none at epochs 240")


def test_a_gain_has_no_infinity_in_json() -> None:
    gain = paired_gain({0: 0.75}, {0: 0.5})
    assert gain is not None
    assert gain.as_facts() == {"mean": 0.25, "low": None, "high": None, "pairs": 1}


def test_a_grid_in_which_everything_diverged_is_no_slip_in_the_metrics_name() -> None:
    rows = [Row("busi", "t", "s", "none", {}, diverged={0: "the loss is NaN."})]
    require_names(rows, "accuracy", "none")
    assert "diverged" in as_markdown(plain_table("t", compare(rows)))


def test_predictions_that_were_written_anew_are_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "predictions.csv"
    path.write_text("uid,label,predicted\nu0,a,a\n")
    assert values_by_uid(path) == {"u0": True}
    path.write_text("uid,label,predicted\nu0,a,bb\n")
    assert values_by_uid(path) == {"u0": False}
