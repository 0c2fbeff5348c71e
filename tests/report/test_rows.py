"""Finished runs become rows with a name each, and are compared on the same images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rdcache.cli import run_command_line
from rdcache.distillation.diverged import record_divergence
from rdcache.errors import RunNotFoundError, TrainingError, UnknownNameError
from rdcache.report import (
    Row,
    as_markdown,
    compare,
    distinguished,
    plain_form,
    plain_table,
    require_names,
    rows_of_folders,
    told_by_validation,
)

GOOD, FAIR = [True] * 9 + [False], [True] * 6 + [False] * 4


def test_runs_that_differ_in_their_seed_alone_make_a_row(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    for seed in (0, 1):
        finished("rd", seed, GOOD)
        finished("none", seed, FAIR)
    none, rd = rows_of_folders([tmp_path / "runs", tmp_path / "runs"])
    assert (none.method, rd.method) == ("none", "rd")
    assert rd.values["accuracy"] == {0: 0.9, 1: 0.9}
    assert rd.sizes == {"classes": 2, "train": 20, "val": 5, "test": 10}
    _, compared = compare([none, rd])
    assert compared.gain is not None
    assert compared.gain.mean == pytest.approx(0.3)
    assert compared.images is not None
    assert compared.images.mean == pytest.approx(0.3)
    assert compared.unequal == {}


def test_rows_told_by_validation_say_nothing_of_test_images(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    for seed in (0, 1):
        finished("rd", seed, GOOD, leaked=[0], val={"accuracy": 0.8, "auroc": 0.75})
        finished("none", seed, FAIR, leaked=[0], val={"accuracy": 0.6})
    rows = [told_by_validation(row) for row in rows_of_folders([tmp_path / "runs"])]
    assert rows[0].values == {"accuracy": {0: 0.6, 1: 0.6}}
    assert rows[1].values == {"accuracy": {0: 0.8, 1: 0.8}, "auroc": {0: 0.75, 1: 0.75}}
    _, rd = compare(rows)
    assert rd.gain is not None
    assert rd.gain.mean == pytest.approx(0.2)
    assert rd.images is None, "predictions are of test images"
    text = as_markdown(plain_form.tested_table("", [rd], "none", reference=False))
    assert "leaks" not in text
    assert "90.0" not in text, "of the test images"


def test_runs_without_validation_images_are_not_told_by_them(
    finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished("rd", 0, GOOD)
    assert run_command_line(("compare", str(tmp_path / "runs"), "--split", "val")) == 2
    assert "these runs have no validation images" in capsys.readouterr().err
    assert run_command_line(("compare", str(tmp_path / "runs"))) == 0


def test_rows_told_by_other_validation_images_have_no_gain(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    finished("rd", 0, GOOD, val={"accuracy": 0.8, "n": 9})
    finished("none", 0, GOOD[1:], val={"accuracy": 0.6})
    rows = [told_by_validation(row) for row in rows_of_folders([tmp_path / "runs"])]
    (note,) = plain_form.tested_table("", compare(rows), "none", reference=False).notes
    assert note == "rd has no gain: it was tested on other validation images than none."
    alike = [replace(row, sizes=rows[0].sizes) for row in rows]
    assert compare(alike)[1].gain is not None, "what the test images were plays no part"


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


def test_runs_on_other_test_images_are_not_compared(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    finished("rd", 0, GOOD)
    finished("none", 0, FAIR[:8])
    none, rd = compare(rows_of_folders([tmp_path / "runs"]))
    assert rd.images is None
    assert rd.gain is None
    assert any("other test images" in note for note in plain_table("t", [none, rd]).notes)


def test_images_that_were_cut_otherwise_are_said(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    finished("rd", 0, GOOD, fit="center", store="a")
    finished("none", 0, FAIR, fit="squash", store="b")
    rd = compare(rows_of_folders([tmp_path / "runs"]))[1]
    assert rd.unequal == {"cached views' fit": ("center", "squash")}


def test_without_leaks_the_accuracy_is_the_leak_free_one(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    finished("rd", 0, GOOD)
    finished("none", 0, FAIR)
    _, rd = compare(rows_of_folders([tmp_path / "runs"]), "accuracy_without_leaks")
    assert rd.values == {0: 0.9}
    assert rd.gain is not None
    assert rd.images is not None
    headings = [heading.name for heading in plain_table("t", [rd]).headings]
    assert "accuracy_without_leaks" not in headings, "it would say the same twice"


def test_what_is_no_finished_student_is_left_out_and_said(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    finished("rd", 0, GOOD)
    adapted = {"schema": 1, "seed": 0, "test": {}, "dataset": {}, "adapted": {}, "teacher": {}}
    for name, text in (
        ("adapt", json.dumps(adapted)),
        ("foreign", json.dumps({"score": 1})),
        ("list", "[]"),
        ("damaged", "{"),
        ("other", json.dumps({**adapted, "student": "s", "method": "rd", "training": 0})),
    ):
        (runs / name).mkdir()
        (runs / name / "result.json").write_text(text)
    finished("kd", 1, GOOD)
    (runs / "busi-t-s-kd-" / "seed1" / "result.json").unlink()
    (finished("hint", 0, GOOD) / "predictions.csv").unlink()
    notes: list[str] = []
    (row,) = rows_of_folders([runs], notes.append)
    assert row.method == "rd"
    assert any("without its predictions" in note for note in notes)
    assert any("adapted teacher" in note and "adapt/result.json" in note for note in notes)
    assert any("damaged" in note for note in notes)
    assert any("not finished" in note and "busi-t-s-kd-" in note for note in notes)


def test_seeds_of_one_configuration_are_one_row_wherever_they_lie(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    for seed, below in ((0, "one"), (1, "other")):
        finished("rd", seed, GOOD, below=below)
    finished("rd", 0, FAIR, below="third")
    notes: list[str] = []
    folders = [tmp_path / name for name in ("one", "other", "third")]
    (row,) = rows_of_folders(folders, notes.append)
    assert row.values["accuracy"] == {0: 0.9, 1: 0.9}
    assert any("seed 0 of rd is there twice" in note and "third" in note for note in notes)


def test_a_method_whose_seeds_all_diverged_is_a_row(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    finished("none", 0, FAIR)
    for seed in (0, 1):
        folder = finished("kd", seed, GOOD)
        (folder / "result.json").unlink()
        record_divergence(folder, TrainingError("the loss is NaN."), {})
    for name, text in (("x", "[]"), ("y", "{"), ("z", '{"summary": "", "of": {"dataset": 1}}')):
        shutil.copytree(folder, tmp_path / "runs" / name)
        (tmp_path / "runs" / name / "diverged.json").write_text(text)
    none, kd = rows_of_folders([tmp_path / "runs"])
    assert (kd.method, kd.place) == ("kd", none.place), "told by the store of another run"
    assert kd.diverged == {0: "the loss is NaN.", 1: "the loss is NaN."}
    (note,) = plain_table("t", compare([none, kd])).notes
    assert note == "Training diverged: busi, t, s, kd, seeds 0, 1."
    folder = finished("hint", 0, GOOD, store="z")
    (folder / "result.json").unlink()
    adapted = {"name": "adapted:x", "adapted": {"method": "lora", "teacher": "t"}}
    of = {"dataset": {"name": "busi"}, "teacher": adapted}
    record_divergence(folder, TrainingError("the loss is NaN."), of)
    hint = rows_of_folders([tmp_path / "runs"])[2]
    assert (hint.method, hint.teacher) == ("lora + hint", "t"), "told by its own record"


def test_the_plain_student_of_an_adapted_teacher_is_that_of_the_teacher(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    adapted = {"method": "lora", "teacher": "t"}
    finished("none", 0, FAIR, fit="squash", store="a")
    finished("none", 0, FAIR, fit="squash", store="b", teacher="adapted:x", adapted=adapted)
    finished("kd", 0, GOOD, fit="squash", store="b", teacher="adapted:x", adapted=adapted)
    none, kd = compare(rows_of_folders([tmp_path / "runs"]))
    assert (none.row.method, none.gain) == ("none", None)
    assert kd.row.method == "lora + kd"
    assert kd.gain is not None


def test_a_student_that_teaches_is_a_teacher_of_its_own(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    taught = {"method": "student", "teacher": "t"}
    finished("none", 0, FAIR, fit="squash", store="a")
    finished("kd", 0, GOOD, fit="squash", store="b", teacher="student:x", adapted=taught)
    kd, none = compare(rows_of_folders([tmp_path / "runs"]))
    assert (none.row.teacher, none.row.method) == ("t", "none")
    assert (kd.row.teacher, kd.row.method, kd.row.source) == ("student:x", "kd", "")
    assert kd.gain is not None, "over the plain student beside another teacher"


def test_no_two_rows_of_a_grid_have_one_name() -> None:
    def of(method: str, source: str, **more: Any) -> Row:
        return Row("busi", "t", "s", method, {}, source=source, underlying=method, **more)

    rows = [
        of("none", "adapted:a"),
        of("none", ""),
        of("lora + kd", "adapted:a"),
        of("lora + kd", "adapted:b"),
        of("none", "adapted:c", training={"epochs": 2}),
        of("hint", ""),
        of("hint", ""),
    ]
    assert [row.method for row in distinguished(rows)] == [
        "none",
        "lora + kd (adapted:a)",
        "lora + kd (adapted:b)",
        "none (adapted:c)",
        "hint (1)",
        "hint (2)",
    ]


def test_names_of_rows_have_no_more_options_than_tell_them_apart(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    finished("rd", 0, GOOD, digest="a", method_options={"beta": 0, "tau": 4}, epochs=3)
    finished("rd", 0, GOOD, digest="b", method_options={"beta": 1, "tau": 2}, epochs=5)
    names = [row.method for row in rows_of_folders([tmp_path / "runs"])]
    assert names == ["rd (beta=0)", "rd (beta=1)"]


def test_what_is_missing_is_said_in_one_sentence(
    finished: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(RunNotFoundError, match="no finished run"):
        rows_of_folders([tmp_path])
    run = finished("rd", 0, GOOD)
    (run / "result.json").rename(tmp_path / "kept")
    with pytest.raises(RunNotFoundError, match="no run in this folder is finished"):
        rows_of_folders([tmp_path])
    (tmp_path / "kept").rename(run / "result.json")
    finished("none", 0, FAIR)
    rows = rows_of_folders([tmp_path])
    with pytest.raises(UnknownNameError, match=r"metric in these runs named 'acuracy'"):
        require_names(rows, "acuracy", "none")
    with pytest.raises(UnknownNameError, match="row named 'direct'"):
        require_names(rows, "accuracy", "direct")
    (run / "predictions.csv").write_text("uid;label\n1;2\n")
    with pytest.raises(RunNotFoundError, match="damaged"):
        assert compare(rows)[1].images
