"""The options for smaller taps as a user types them, and what the commands say of the result."""

from __future__ import annotations

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
def extract(script: Callable[[nn.Module], str], folder: Path) -> tuple[str, ...]:
    teacher = script(Pooling(1.0))
    return ("extract", "--teacher", teacher, "--dataset", f"folder:{folder}", "--views", "clean")


def succeed(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments: str) -> Any:
    return json.loads(succeed(*arguments, "--json"))


def test_smaller_taps_are_asked_for_and_described(extract: tuple[str, ...]) -> None:
    options = ("--taps", "out0,out1", "--dtype", "out0=int8", "--codec", "zstd")
    options += ("--pool", "out0=2", "--project", "out0=2")
    planned = as_json(*extract, *options, "--dry-run")
    out0 = {"shape": [2, 2, 2], "dtype": "int8", "codec": "zstd", "bytes": 40 * (8 + 2 * 4)}
    assert planned["taps"]["out0"] == out0
    assert planned["bytes"] == sum(tap["bytes"] for tap in planned["taps"].values())
    facts = as_json(*extract, *options)
    assert set(facts["taps"]) == {"out0", "out1"}
    assert set(facts["fidelity"]["out0"]) == {"samples", "cosine", "cka", "ratio"}
    described = succeed("info", facts["store"])
    assert "out0 2×2×2 int8 zstd, projected from 3 channels" in described
    assert "times smaller than in float16" in described
    again = succeed(*extract, *options[:4], *options[6:])  # the same, but no codec is asked for
    assert "out0 is zstd, out1 is zstd: the store was begun so, and keeps it" in again


def test_codecs_are_compared_and_nothing_is_written(
    extract: tuple[str, ...], tmp_path: Path
) -> None:
    root = tmp_path / "fresh"
    command = (*extract, "--dry-run", "--compare-codecs", "--root", str(root))
    codecs = as_json(*command)["codecs"]["out0"]
    assert codecs["recommended"] == "none"
    assert "1 GB" in codecs["why"]
    assert {it["name"] for it in codecs["candidates"]} >= {"none", "zstd", "blosc", "int8", "pool"}
    table = succeed(*command)
    assert "--dtype out0=int8 --codec out0=zstd" in table
    assert "Recommended for out0: none" in table
    assert not root.exists()


def test_comparing_without_a_dry_run_is_wrong_usage(
    extract: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command_line((*extract, "--compare-codecs")) == 2
    assert "give it with --dry-run" in capsys.readouterr().err


def test_efficientnet_on_the_phantom_is_compared() -> None:
    facts = as_json(
        *("extract", "--teacher", "efficientnet-lite0", "--dataset", "phantom"),
        *("--taps", "s4", "--dry-run", "--compare-codecs"),
    )
    found = {it["name"]: it for it in facts["codecs"]["s4"]["candidates"]}
    assert set(found) == {"none", "zstd", "blosc", "int8", "int8+zstd", "pool", "project"}
    assert found["zstd"]["ratio"] > 2
    assert found["zstd"]["cosine"] > 0.99999
    assert found["int8"]["cka"] > 0.99
