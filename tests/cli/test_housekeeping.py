"""`rdcache du`, `gc`, `rm` and `diff` as a user types them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from small_inputs import Pooling
from torch import nn

from rdcache.cli import run_command_line


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command_line(arguments) == 0
    return capsys.readouterr().out


def test_two_stores_are_compared_measured_and_removed(
    capsys: pytest.CaptureFixture[str],
    script: Callable[[nn.Module], str],
    folder: Path,
    tmp_path: Path,
) -> None:
    root = str(tmp_path / "stores")
    where = ("--teacher", script(Pooling(1.0)), "--dataset", f"folder:{folder}", "--root", root)
    one, other = (
        json.loads(run(capsys, "extract", *where, "--views", views, "--json"))["store"]
        for views in ("clean", "flip")
    )
    different = json.loads(run(capsys, "diff", one, other, "--json"))
    assert different["same"] is False
    assert list(different["differences"]) == ["views"]
    assert "Same fingerprint" in run(capsys, "diff", one, one)

    usage = json.loads(run(capsys, "du", "--root", root, "--json"))
    assert [entry["store"] for entry in usage["stores"]] == [other, one]
    assert usage["bytes"] == sum(entry["bytes"] for entry in usage["stores"]) > 0

    assert "Nothing to clean up" in run(capsys, "gc", "--root", root)
    listed = run(capsys, "gc", "--root", root, "--unused-for", "0")
    assert "add --delete" in listed
    assert Path(one).exists()

    assert "Removed" in run(capsys, "rm", other)
    run(capsys, "gc", "--root", root, "--unused-for", "0", "--delete")
    assert not Path(one).exists()
    assert not Path(other).exists()
