"""Grids and folders of runs laid out from the command line."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from small_inputs import Pooling
from torch import nn

from rdcache.cli import cli, run_command_line


@pytest.fixture
def recipe(script: Callable[[nn.Module], str], few: Path, tmp_path: Path) -> Path:
    path = tmp_path / "grid.yaml"
    path.write_text(
        f"""
title: A small grid
teachers: ["{script(Pooling(1.0))}"]
datasets: ["folder:{few}"]
students: [shufflenet-x0.5]
methods: [none, co-training, wild]
variants:
  co-training: {{method: rd, options: {{beta: 0, cka_weight: 0, width: 8}}}}
  wild: {{method: none, distill: {{lr: 1.0e+30, clip: 0}}}}
extract: {{views: clean, val_fraction: 0.2}}
distill: {{epochs: 1, image_size: 32, batch_size: 4, select: last, device: cpu}}
"""
    )
    return path


def compared(*arguments: str) -> str:
    result = CliRunner().invoke(cli, ("compare", *arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_a_recipe_is_run_and_laid_out_and_its_folders_are_as_well(
    recipe: Path, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    place = ("--out", str(runs))
    report: dict[str, Any] = json.loads(compared(str(recipe), *place, "--json"))
    none, co_training, wild = report["rows"]
    assert (none["over_images"], none["gain"]) == (None, None)
    assert co_training["over_images"]["images"] > 0
    assert 0 < co_training["over_images"]["p"] <= 1
    assert co_training["gain"]["low"] is None, "of a single seed there is no interval"
    assert wild["metrics"] == {}
    assert list(wild["diverged"]) == ["0"]
    assert list(none["runs"]) == ["0"]
    ran = CliRunner().invoke(cli, ("run", str(recipe), *place, "--json"), catch_exceptions=False)
    assert json.loads(ran.stdout) == report, "one shape for both"
    results = {path: path.stat().st_mtime_ns for path in runs.rglob("result.json")}
    assert len(results) == 2

    text = compared(str(recipe), *place, "--form", "ablation")
    assert "co-training" in text
    assert "diverged" in text
    table = tmp_path / "table.tex"
    wanted = ("--form", "methods", "--table", str(table))
    assert compared(str(recipe), *place, *wanted) == ""
    assert r"\begin{tabular}" in table.read_text()
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("result.json")} == results

    by_validation = json.loads(compared(str(recipe), *place, "--json", "--split", "val"))
    assert by_validation["title"].endswith(", validation images")
    for row, tested in zip(by_validation["rows"], report["rows"], strict=True):
        assert row["split"] == "val"
        for seed, folder in row["runs"].items():
            result = json.loads((Path(folder) / "result.json").read_text())
            assert row["metrics"]["accuracy"][seed] == result["val"]["accuracy"]
            assert tested["metrics"]["accuracy"][seed] == result["test"]["accuracy"]

    heading, *lines = csv.reader(compared(str(runs), "--format", "csv").splitlines())
    assert heading[3:5] == ["method", "accuracy (%)"]
    names = [line[3] for line in lines]
    assert names == ["none (lr=0.005)", "none (lr=1e+30)", "rd"], "they know no variants"


def test_mistakes_are_one_sentence(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    for arguments, status, sentence in (
        ((str(folder),), 1, "no finished run in this folder"),
        ((str(recipe), str(folder)), 2, "one recipe is compared, or folders"),
        ((str(folder), "--table", str(folder / "no" / "t.md")), 2, "no folder for the table"),
        (("no_such.yaml",), 2, "no recipe named 'no_such.yaml'"),
        (("typo",), 2, "no such folder of runs"),
        ((str(folder), "typo"), 2, "no such folder or recipe"),
        ((str(recipe), "--table", str(folder)), 2, "this is a folder"),
        ((str(recipe), "--metric", "acuracy"), 2, "acuracy"),
        ((str(recipe), "--baseline", "direkt"), 2, "no row named 'direkt'"),
        ((str(folder), "--out", str(folder)), 2, "--out is of a recipe"),
        ((str(recipe), "--split", "val", "--reference"), 2, "paper's numbers are of test images"),
        (
            (str(recipe), "--split", "val", "--metric", "dice_without_leaks"),
            2,
            "dice_without_leaks is of test images",
        ),
        ((str(folder), "--form", "table9"), 2, "table9"),
    ):
        assert run_command_line(("compare", *arguments)) == status
        assert sentence in capsys.readouterr().err
    assert not list(tmp_path.rglob("config.yaml")), "refused before anything is trained"
