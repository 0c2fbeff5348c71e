"""Finished runs become rows with a name each, and are compared on the same images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rdcache.errors import RunNotFoundError, UnknownNameError
from rdcache.report import compare, require_names, rows_of_folders

GOOD, FAIR = [True] * 9 + [False], [True] * 6 + [False] * 4


def test_runs_that_differ_in_their_seed_alone_make_a_row(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    for seed in (0, 1):
        finished("rd", seed, GOOD)
        finished("none", seed, FAIR)
    none, rd = rows_of_folders([tmp_path / "runs", tmp_path / "runs"])
    assert (none.method, rd.method) == ("none", "rd")
    assert rd.values == {"accuracy": {0: 0.9, 1: 0.9}}
    assert rd.sizes == {"classes": 2, "train": 20, "val": 5, "test": 10}
    _, compared = compare([none, rd])
    assert compared.gain is not None
    assert compared.gain.mean == pytest.approx(0.3)
    assert compared.images is not None
    assert compared.images.mean == pytest.approx(0.3)
    assert compared.unequal == {}


def test_rows_of_one_method_are_called_by_what_differs(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    finished("rd", 0, GOOD, digest="a", method_options={"beta": 0, "width": 8})
    finished("rd", 0, GOOD, digest="b", method_options={"beta": 1, "width": 8})
    finished("rd", 0, GOOD, digest="c", method_options={"beta": 1, "width": 8}, epochs=5)
    finished("none", 0, FAIR)
    rows = rows_of_folders([tmp_path / "runs"])
    assert [row.method for row in rows] == [
        "none",
        "rd (beta=0, epochs=3)",
        "rd (beta=1, epochs=3)",
        "rd (beta=1, epochs=5)",
    ]
    assert compare(rows)[3].unequal == {"epochs": (5, 3)}, "not the same budget"


def test_rows_of_an_adapted_teacher_stand_beside_those_of_the_teacher_itself(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    finished("none", 0, FAIR, teacher="lvm-med")
    for method in ("lora", "vpt"):
        name = f"adapted:{method}-lvm-med-busi-0f1e"
        finished("kd", 0, GOOD, teacher=name, adapted={"method": method, "teacher": "lvm-med"})
    rows = rows_of_folders([tmp_path / "runs"])
    assert [(row.teacher, row.method) for row in rows] == [
        ("lvm-med", "none"),
        ("lvm-med", "lora + kd"),
        ("lvm-med", "vpt + kd"),
    ]
    assert all(item.gain is not None for item in compare(rows)[1:])
    other = {"method": "vpt", "teacher": "lvm-med"}
    finished("kd", 0, FAIR, teacher="adapted:vpt-lvm-med-busi-77aa", adapted=other, store="e")
    names = [row.method for row in rows_of_folders([tmp_path / "runs"])]
    assert names[2:] == ["vpt + kd (store=eeeeeeee)", "vpt + kd (store=ffffffff)"]


def test_leaked_images_are_left_out_where_the_metric_leaves_them_out(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    finished("rd", 0, GOOD, leaked=[0, 9])
    finished("none", 0, FAIR, leaked=[0, 9])
    _, rd = compare(rows_of_folders([tmp_path / "runs"]), "accuracy_without_leaks")
    assert rd.values == {0: 1.0}
    assert rd.images is not None
    assert rd.images.images == 8
    assert rd.images.mean == pytest.approx(3 / 8)


def test_runs_on_other_test_images_are_not_tested_on_them(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    finished("rd", 0, GOOD)
    finished("none", 0, FAIR[:8])
    rd = compare(rows_of_folders([tmp_path / "runs"]))[1]
    assert rd.images is None
    assert rd.gain is not None


def test_what_is_missing_is_said_in_one_sentence(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(RunNotFoundError, match="no finished run"):
        rows_of_folders([tmp_path])
    run = finished("rd", 0, GOOD)
    finished("none", 0, FAIR)
    rows = rows_of_folders([tmp_path])
    with pytest.raises(UnknownNameError, match=r"metric in these runs named 'acuracy'"):
        require_names(rows, "acuracy", "none")
    with pytest.raises(UnknownNameError, match="row named 'direct'"):
        require_names(rows, "accuracy", "direct")
    (run / "predictions.csv").write_text("uid;label\n1;2\n")
    with pytest.raises(RunNotFoundError, match="damaged"):
        assert compare(rows)[1].images
