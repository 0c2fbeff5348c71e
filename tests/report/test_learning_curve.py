"""Curves from run folders: what is a line, what is a point, and what is compared with what."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image
from scipy import stats

from rdcache.cli import cli, run_command_line
from rdcache.distillation import DistillConfig
from rdcache.errors import RunNotFoundError, UsageError
from rdcache.report import learning_curve, runs_below
from rdcache.report.learning_curve import notes_on
from rdcache.report.learning_curve_tables import as_markdown

Write = Callable[..., Path]
PLAIN = {0.25: (0.50, 0.54, 0.52), 1.0: (0.70, 0.71, 0.75)}
BETTER = {0.25: (0.58, 0.61, 0.57), 1.0: (0.71, 0.70, 0.76)}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the folder of a run that is finished."""

    def build(
        accuracy: float, seed: int = 0, teacher: str = "t", of: str = "0123456789", **options: Any
    ) -> Path:
        config = DistillConfig(**options).resolved()
        fraction = config.train_fraction
        digest = config.digest(of)[:8]
        folder = tmp_path / "runs" / f"{teacher}-{config.method}-{digest}" / f"seed{seed}"
        folder.mkdir(parents=True)
        result = {
            "schema": 1,
            "seed": seed,
            "student": config.student,
            "method": config.method,
            "dataset": {"name": "busi"},
            "teacher": {"name": teacher},
            "training": {"samples": round(400 * fraction) + seed, "of": 400},
            "test": {"accuracy": accuracy},
        }
        (folder / "result.json").write_text(json.dumps(result))
        store = {"location": "somewhere", "fingerprint": of}
        own = {"store": store, "seed": seed, "config": config.model_dump(mode="json")}
        (folder / "config.yaml").write_text(yaml.safe_dump(own))
        return folder

    return build


@pytest.fixture
def runs(write: Write, tmp_path: Path) -> Path:
    """Two methods at two sizes with three seeds."""
    for method, by_size in (("none", PLAIN), ("rd", BETTER)):
        for fraction, accuracies in by_size.items():
            for seed, accuracy in enumerate(accuracies):
                write(accuracy, seed, method=method, train_fraction=fraction)
    return tmp_path / "runs"


def test_points_are_means_over_seeds_and_gains_are_paired_at_the_same_size(runs: Path) -> None:
    plain, rd = sorted(learning_curve(runs_below(runs)), key=lambda line: line.method)
    assert [line.label for line in (plain, rd)] == ["none", "rd"]
    assert [(point.fraction, point.images) for point in rd.points] == [(0.25, 101), (1.0, 401)]
    for point, fraction in zip(rd.points, (0.25, 1.0), strict=True):
        values, differences = BETTER[fraction], np.subtract(BETTER[fraction], PLAIN[fraction])
        assert point.mean == pytest.approx(np.mean(values))
        assert point.std == pytest.approx(np.std(values, ddof=1))
        interval = stats.t.interval(0.95, 2, differences.mean(), stats.sem(differences))
        assert point.gain is not None
        assert (point.gain.low, point.gain.high) == pytest.approx(interval)
    assert [point.gain for point in plain.points] == [None, None]


def test_options_that_differ_at_one_size_make_lines_and_those_that_differ_between_sizes_do_not(
    write: Write, tmp_path: Path
) -> None:
    write(0.5, method="none", train_fraction=0.5, epochs=200)
    write(0.6, method="none", epochs=100)
    for temperature in (1.0, 4.0):
        own = {"temperature": temperature}
        write(0.6, train_fraction=0.5, epochs=200, method_options=own)
        write(0.7, epochs=100, method_options=own)
    lines = learning_curve(runs_below(tmp_path / "runs"))
    labels = sorted(line.label for line in lines)
    assert labels == ["none", "rd (temperature 1.0)", "rd (temperature 4.0)"]
    assert all(len(line.points) == 2 for line in lines)
    assert all(point.gain for line in lines if line.method == "rd" for point in line.points)


def test_a_plain_student_with_other_options_is_no_baseline(write: Write, tmp_path: Path) -> None:
    for lr in (1e-3, 2e-3):
        write(0.5, method="none", lr=lr)
        write(0.5 + 100 * lr, lr=lr)
    write(0.9, teacher="another")
    lines = learning_curve(runs_below(tmp_path / "runs"))
    gains = {line.label: line.points[0].gain for line in lines if line.teacher == "t"}
    for lr in (1e-3, 2e-3):
        gain = gains[f"rd (lr {lr})"]
        assert gain is not None
        assert gain.mean == pytest.approx(100 * lr)
    (alone,) = [line for line in lines if line.teacher == "another"]
    assert alone.points[0].gain is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"epochs": 7}, "epochs 240 instead of 7"),
        ({"subset_seed": 3}, "subset_seed None instead of 3"),
        ({"image_size": 64}, "image_size 224 instead of 64"),
        ({"of": "another-store"}, "store 01234567 instead of another-"),
    ],
    ids=["epochs", "subset seed", "image size", "store"],
)
def test_a_plain_student_that_was_not_trained_alike_gives_no_gain_and_a_note(
    write: Write, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    alike = {"train_fraction": 0.5, "epochs": 240, "image_size": 224}
    for seed in (0, 1):
        write(0.5, seed, method="none", **{**alike, **changes})
        write(0.6, seed, **alike)
    lines = learning_curve(runs_below(tmp_path / "runs"))
    assert [line.label for line in lines] == ["none", "rd"]
    assert [point.gain for line in lines for point in line.points] == [None, None]
    (note,) = notes_on(lines)
    assert note.startswith("no gain of rd at 50 % of busi: ")
    assert note.endswith(said)
    told = CliRunner().invoke(cli, ["curve", str(tmp_path / "runs")])
    assert said in told.stderr


def test_of_several_plain_lines_that_fit_none_is_chosen(write: Write, tmp_path: Path) -> None:
    for amp in ("bf16", "off"):
        write(0.5, method="none", amp=amp)
    write(0.6, amp="bf16")
    write(0.6, amp="auto", student="mobilenet")
    for amp in ("bf16", "off"):
        write(0.5, method="none", amp=amp, student="mobilenet")
    first, second = (
        line.points[0]
        for line in learning_curve(runs_below(tmp_path / "runs"))
        if line.method == "rd"
    )
    by_gain = {point.gain is None: point for point in (first, second)}
    assert by_gain[False].note == ""
    assert by_gain[True].note == "2 lines of plain students fit it"


def test_the_gain_of_a_single_seed_has_no_bounds_in_json(write: Write, tmp_path: Path) -> None:
    write(0.5, method="none")
    write(0.6)
    told = CliRunner().invoke(cli, ["curve", str(tmp_path / "runs"), "--json"])

    def refuse(name: str) -> None:
        raise AssertionError(name)

    facts = json.loads(told.stdout, parse_constant=refuse)
    gain = facts["lines"][1]["points"][0]["gain"]
    assert (gain["low"], gain["high"], gain["pairs"]) == (None, None, 1)


def test_what_is_no_finished_run_is_passed_over(runs: Path) -> None:
    (runs / "else").mkdir()
    (runs / "else" / "result.json").write_text("{}")
    (next(runs.iterdir()) / "seed9").mkdir()
    assert len(runs_below(runs)) == 12
    with pytest.raises(RunNotFoundError, match="no finished run"):
        runs_below(runs / "else")


def test_a_metric_that_no_run_has_is_refused(runs: Path) -> None:
    with pytest.raises(UsageError, match="'sharpness'"):
        learning_curve(runs_below(runs), "sharpness")


def test_the_command_prints_a_table_numbers_and_a_picture(runs: Path, tmp_path: Path) -> None:
    def printed(*arguments: str) -> str:
        found = CliRunner().invoke(cli, ["curve", str(runs), *arguments], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.stdout

    picture = tmp_path / "curve.png"
    assert "+6.7 (" in printed("--out", str(picture))
    with Image.open(picture) as image:
        assert np.asarray(image.convert("L")).min() < 100, "nothing is drawn"
    lines = list(csv.DictReader(printed("--format", "csv").splitlines()))
    assert [float(line["fraction"]) for line in lines] == [0.25, 1.0] * 2
    facts = json.loads(printed("--json"))
    assert facts["lines"][1]["points"][0]["values"] == {"0": 0.58, "1": 0.61, "2": 0.57}
    markdown = as_markdown(learning_curve(runs_below(runs)), "accuracy")
    assert printed("--format", "markdown") == markdown
    assert "| busi | t | shufflenet | none | 101 (25 %) | 52.0 ± 2.0 |  | 3 |" in markdown


def test_a_picture_that_cannot_be_written_is_one_sentence(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line(["curve", str(runs), "--out", str(runs / "curve.xyz")]) == 2
    assert run_command_line(["curve", str(runs / "none"), "--out", "curve.bmp"]) == 2, "seen first"
    (runs / "file").touch()
    assert run_command_line(["curve", str(runs), "--out", str(runs / "file" / "curve.png")]) == 1
    assert not list(runs.glob("**/*partial*"))
    assert "Traceback" not in capsys.readouterr().err
