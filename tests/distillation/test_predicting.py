"""Files that are in no dataset, classified by a finished run's student."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdcache.cli import run_command_line
from rdcache.distillation import distill, predict_files
from rdcache.errors import UsageError
from rdcache.models import load_student

from .conftest import Tiny

Options = Callable[..., dict[str, Any]]


def test_a_file_of_the_test_split_is_told_as_the_run_told_it(
    tiny: Tiny, options: Options, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = distill(tiny.store, method="none", **options(epochs=1))
    with (run.path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    test = np.flatnonzero(tiny.dataset.splits == "test")
    files = [tiny.dataset.samples[sample].path for sample in test]
    found = predict_files(run, files, device="cpu")
    for row, each in zip(rows, found, strict=True):
        assert each.predicted == (row["predicted"],)
        for name, p in each.probabilities.items():
            assert p == pytest.approx(float(row[f"p_{name}"]), abs=1e-5)

    out = tmp_path / "told"
    arguments = ["predict", str(run.path), *map(str, files[:2]), "--out", str(out)]
    assert run_command_line([*arguments, "--device", "cpu", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [it["predicted"] for it in printed["files"]] == [[row["predicted"]] for row in rows[:2]]
    with (out / "predictions.csv").open() as file:
        written = list(csv.DictReader(file))
    assert [it["predicted"] for it in written] == [row["predicted"] for row in rows[:2]]
    with pytest.raises(UsageError, match="no file"):
        predict_files(run, [], device="cpu")
    kept = (run.path / "predictions.csv").read_bytes()
    assert run_command_line(["predict", str(run.path), str(files[0]), "--out", str(run.path)]) == 2
    assert "a folder of its own" in capsys.readouterr().err
    assert (run.path / "predictions.csv").read_bytes() == kept

    written_to = tmp_path / "student.safetensors"
    assert run.input_size == (32, 32)
    assert run_command_line(["export-student", str(run.path), str(written_to), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["input"] == [3, 32, 32]
    assert torch.equal(load_student(written_to).classifier.weight, run.student.classifier.weight)
    assert run_command_line(["export-student", str(run.path), str(written_to)]) == 2
    assert "--overwrite" in capsys.readouterr().err
