"""A root in a bucket, as a user types it: both phases, sharing, looking, removing."""

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
from rdcache.errors import CorruptShardError
from rdcache.store import RemotePath, open_store
from rdcache.store.objects import objects_at

QUICK = (
    *("--student", "shufflenet-x0.5", "--image-size", "32", "--batch-size", "8"),
    *("--epochs", "1", "--device", "cpu"),
)


def succeed(*arguments: str) -> str:
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def as_json(*arguments: str) -> Any:
    return json.loads(succeed(*arguments, "--json"))


@pytest.fixture
def where(script: Callable[[nn.Module], str], folder: Path) -> tuple[str, ...]:
    return ("--teacher", script(Pooling(1.0)), "--dataset", f"folder:{folder}")


def test_both_phases_on_a_root_in_a_bucket(
    where: tuple[str, ...], bucket: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RDCACHE_ROOT", str(bucket))
    assert as_json("extract", *where, "--views", "2", "--dry-run")["free_bytes"] is None
    made = as_json("extract", *where, "--views", "2")
    assert made["status"] == "extracted"
    assert made["store"].startswith(f"{bucket}/folder-images/")
    assert as_json("extract", *where, "--views", "2")["status"] == "unchanged"
    (listed,) = as_json("list", "stores")["stores"]
    assert (listed["store"], listed["complete"]) == (made["store"], True)
    assert as_json("info")["fingerprint"]["digest"].startswith(made["store"].rpartition("/")[2])
    assert as_json("du")["bytes"] > 0
    assert as_json("verify", made["store"])["ok"]

    run = as_json("distill", *QUICK, *where[2:], "--out", str(tmp_path / "runs"))
    assert run["store"] == made["store"]
    assert 0 <= run["runs"][0]["metrics"]["accuracy"] <= 1
    assert as_json("rm", made["store"])["removed"][made["store"]] > 0
    assert as_json("list", "stores")["stores"] == []


def test_a_store_is_pushed_and_a_part_of_it_pulled_and_used(
    where: tuple[str, ...], bucket: RemotePath, tmp_path: Path
) -> None:
    made = as_json("extract", *where, "--views", "3")
    pushed = as_json("push", made["store"], str(bucket))
    assert (pushed["status"], pushed["views"]) == ("copied", 3)
    assert as_json("push", made["store"], str(bucket))["status"] == "unchanged"
    mine = str(tmp_path / "mine")
    part = as_json("pull", pushed["store"], mine, "--views", "2", "--split", "train,test")
    assert (part["status"], part["views"], part["taps"]) == ("copied", 2, ["out0"])
    assert part["samples"] < pushed["samples"]
    options = ("--store", part["store"], *where[2:], "--out", str(tmp_path / "runs"))
    run = as_json("distill", *QUICK, *options, "--select", "last")
    assert 0 <= run["runs"][0]["metrics"]["accuracy"] <= 1
    # With fewer views alone it is the very store that extract makes.
    pulled = as_json("pull", pushed["store"], "--views", "2")
    assert as_json("extract", *where, "--views", "2")["store"] == pulled["store"]


def test_a_damaged_store_in_a_bucket_is_mended_as_its_error_says(
    where: tuple[str, ...], bucket: RemotePath
) -> None:
    store = RemotePath(
        as_json("extract", *where, "--views", "flip", "--root", str(bucket))["store"]
    )
    objects = objects_at(store)
    name = min(objects.sizes("taps/out0/c/0"))
    good = objects.read(name) or b""
    objects.put(name, good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(CorruptShardError, match="cannot be used") as caught:
        open_store(store).read([0], 0)
    assert caught.value.facts["next"].startswith(f"rdcache verify {store} --repair")
    assert as_json("verify", str(store), "--repair", *where)["ok"]
    assert objects.read(name) == good


def test_addresses_that_are_none_are_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["list", "stores", "--root", "ftp://somewhere/x"],
        ["extract", "--teacher", "t", "--dataset", "d", "--root", "s3:///x"],
        ["push", "somewhere", "s4://x"],
    ):
        assert run_command_line(arguments) == 2
        error = capsys.readouterr().err
        assert "address" in error
        assert "Traceback" not in error
