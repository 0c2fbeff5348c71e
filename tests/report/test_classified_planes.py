"""Runs on planes of test images, end to end: a black box extracted, distilled, and run again."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from small_inputs import LargeOnBright, Pooling
from torch import nn

import rdcache
from rdcache.cli import cli
from rdcache.data import cut_view, load_dataset
from rdcache.distillation import Run
from rdcache.distillation.reevaluation import clean_views
from rdcache.errors import TeacherOutputError, UnknownNameError, UsageError
from rdcache.extraction.live_taps import LiveTaps, load_live_taps
from rdcache.report.classified_planes import classify_planes
from rdcache.report.plane_classifiers import TeachersHere, students_of
from rdcache.store import JointStore, Store, folder_name

QUICK: dict[str, Any] = {"student": "shufflenet-x0.5", "image_size": 32, "batch_size": 8}


def test_runs_are_drawn_and_compared_on_planes_of_test_images(
    script: Callable[[nn.Module], str], few: Path, tmp_path: Path
) -> None:
    teacher, other, dataset = script(Pooling(1.0)), script(LargeOnBright()), f"folder:{few}"
    store = rdcache.extract(
        teacher=teacher, dataset=dataset, views="clean", pool=("out0=2",), dtype=("int8",)
    )
    assert_live_taps_are_those_of_the_store(store, teacher, few)
    second = rdcache.extract(teacher=other, dataset=dataset, views="clean")
    places = {"dataset": dataset, "out": tmp_path / "runs", "device": "cpu"}
    plain = rdcache.distill(store, method="none", epochs=1, **QUICK, **places)
    rd = rdcache.distill([store, second], method="rd", epochs=1, width=16, **QUICK, **places)

    assert_images_get_the_classes_of_the_runs_evaluation(plain, few)

    picture = tmp_path / "plane.png"
    command = ["boundaries", str(plain.path), str(rd.path), "--dataset", dataset]
    command += ["--resolution", "4", "--triplets", "2", "--out", str(picture), "--device", "cpu"]
    result = CliRunner().invoke(cli, [*command, "--teacher", teacher, "--teacher", other, "--json"])
    assert result.exit_code == 0, result.output
    facts = json.loads(result.stdout)
    titles = [each["title"] for each in facts["classifiers"]]
    assert titles == ["rd teacher branch", "plain student", "rd student"]
    assert len(facts["planes"]) == 2
    assert len(facts["agreement"]) == 3
    assert all(0 <= each["mean"] <= 1 for each in facts["agreement"])
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"

    # Without its file the teacher cannot be run; the picture is of the students.
    images = ",".join(uid[:12] for uid in facts["planes"][0])
    result = CliRunner().invoke(cli, [*command, "--images", images])
    assert result.exit_code == 0, result.output
    assert "left out: rd teacher branch. a store does not know" in result.stderr.lower()
    assert "one plane" in result.stdout
    assert "teacher branch" not in result.stdout
    assert_other_images_are_refused([plain, rd], dataset)
    one = rdcache.distill(
        [store, second],
        method="rd",
        tap=f"{folder_name(second.manifest['teacher']['name'])}.out0",
        epochs=1,
        **QUICK,
        **places,
    )
    assert_teachers_that_are_not_read_are_not_run(one, dataset, other)
    assert_moved_stores_are_found_in_any_order([store, second], rd, dataset, (teacher, other))
    assert_a_teacher_that_gives_nan_is_left_out(rd, dataset, (teacher, other))


def assert_teachers_that_are_not_read_are_not_run(run: Run, dataset: str, teacher: str) -> None:
    here = TeachersHere((teacher,))
    shown = classify_planes([run], triplets=1, resolution=2, here=here, dataset=dataset)
    assert [panel.kind for panel in shown.panels] == ["teacher branch", "student"]


def assert_moved_stores_are_found_in_any_order(
    stores: list[Store], run: Run, dataset: str, teachers: tuple[str, ...]
) -> None:
    """Each is enough to find the run's own among those that are left where they were."""
    moved = [Path(f"{store.location}-moved") for store in stores]
    for store, place in zip(stores, moved, strict=True):
        Path(str(store.location)).rename(place)
    notes: list[str] = []

    def shown(given: Sequence[Path]) -> list[str]:
        here = TeachersHere(teachers, stores=tuple(given))
        options: dict[str, Any] = {"triplets": 1, "resolution": 2, "here": here, "dataset": dataset}
        return [
            panel.kind for panel in classify_planes([run], **options, on_note=notes.append).panels
        ]

    assert shown(moved[::-1]) == ["teacher branch", "student"], notes
    moved[0].rename(str(stores[0].location))
    assert shown(moved[1:]) == ["teacher branch", "student"], notes
    moved[1].rename(str(stores[1].location))
    with pytest.raises(UsageError, match="one weight file is given for several teachers"):
        load_live_taps(JointStore(stores), teachers, weights="some.pth")


def assert_a_teacher_that_gives_nan_is_left_out(
    run: Run, dataset: str, teachers: tuple[str, ...]
) -> None:
    def fail(*args: object) -> None:
        raise TeacherOutputError("it gives NaN or Inf for these images.")

    notes: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveTaps, "of", fail)
        options: dict[str, Any] = {"triplets": 2, "resolution": 2, "here": TeachersHere(teachers)}
        shown = classify_planes([run], **options, dataset=dataset, on_note=notes.append)
    assert [panel.kind for panel in shown.panels] == ["student"]
    assert shown.predicted.shape == (2, 1, 2, 2)
    assert notes == ["left out: rd teacher branch. it gives NaN or Inf for these images."]


def assert_live_taps_are_those_of_the_store(store: Store, teacher: str, folder: Path) -> None:
    """Pooled and rounded to int8 like those."""
    (live,), dataset, rows = (
        load_live_taps(store, [teacher]),
        load_dataset(f"folder:{folder}"),
        [0, 5],
    )
    cuts = [cut_view(dataset.decode(row), store.view_parameters[0, row], 224) for row in rows]
    now = live.of(torch.from_numpy(np.stack(cuts)).float(), ["out0"])["out0"]
    torch.testing.assert_close(now, store.read(rows, 0, ["out0"])["out0"], atol=1e-5, rtol=0)


def assert_images_get_the_classes_of_the_runs_evaluation(run: Run, folder: Path) -> None:
    """At the corners of a plane a student says what its `predictions.csv` says."""
    dataset, (student,) = load_dataset(f"folder:{folder}"), students_of([run], torch.device("cpu"))
    with (run.path / "predictions.csv").open() as file:
        predicted = {row["uid"]: row["predicted"] for row in csv.DictReader(file)}
    views = clean_views(run, dataset)[0]
    rows = [row for row, uid in enumerate(dataset.uids) if uid in predicted]
    cuts = [cut_view(dataset.decode(row), views[row], student.looks[0].size) for row in rows]
    classes = student.classify([torch.from_numpy(np.stack(cuts)).float()])[0]
    assert rows
    assert [dataset.classes[label] for label in classes] == [
        predicted[dataset.uids[row]] for row in rows
    ]


def assert_other_images_are_refused(runs: list[Run], dataset: str) -> None:
    with pytest.raises(UsageError, match="through three images"):
        classify_planes(runs, images=("a", "b"), dataset=dataset)
    with pytest.raises(UnknownNameError, match="no test image"):
        classify_planes(runs, images=("x", "y", "z"), dataset=dataset)
    other = Run(runs[0].path)
    vars(other)["result"] = {**runs[0].result, "views": {"fit": "center"}}
    with pytest.raises(UsageError, match="not of the same images"):
        classify_planes([runs[1], other], dataset=dataset)
