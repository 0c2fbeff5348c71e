"""`rdcache verify`: what it finds, what it mends, and the status it exits with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_inputs import Pooling
from torch import nn

from rdcache.cli import run_command_line


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = run_command_line(arguments)
    return status, capsys.readouterr().out


def test_verify_finds_damage_and_repairs_it(
    capsys: pytest.CaptureFixture[str], script: Callable[[nn.Module], str], folder: Path
) -> None:
    where = ("--teacher", script(Pooling(1.0)), "--dataset", f"folder:{folder}")
    _, text = run(capsys, "extract", *where, "--views", "flip", "--json")
    store = json.loads(text)["store"]

    status, text = run(capsys, "verify", store, "--against-teacher", "5", *where, "--json")
    report = json.loads(text)
    assert (status, report["ok"], report["complete"], report["problems"]) == (0, True, True, [])
    assert [agreement["tap"] for agreement in report["against_teacher"]] == ["out0"]

    broken = next(path for path in Path(store).glob("taps/out0/c/0/**/*") if path.is_file())
    broken.write_bytes(broken.read_bytes()[:-1])
    status, text = run(capsys, "verify", store)
    assert status == 1
    assert "does not match its receipt" in text
    assert "--repair" in text
    status, text = run(capsys, "verify", store, "--repair", *where)
    assert status == 0
    assert "every byte is as it was written" in text


def test_verify_of_nothing_is_one_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_command_line(["verify", str(tmp_path)]) == 1
    assert "there is no rdcache store here" in capsys.readouterr().err
