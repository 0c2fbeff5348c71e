"""A disk that is full, fails or refuses, in the middle of an extraction: one sentence, nothing
half-written, and the same command goes on when the disk is well again.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from small_inputs import Pooling
from torch import nn

from rdcache.errors import StoreWriteError
from rdcache.extraction import ExtractConfig, plan_extraction, run_extraction
from rdcache.store import open_store, verify_store

from .test_many_writers import chunks

TMPFS_BYTES = 64 * 4096


@pytest.fixture
def config(script: Callable[[nn.Module], str], folder: Path, tmp_path: Path) -> ExtractConfig:
    return ExtractConfig(
        teacher=script(Pooling(1.0)),
        dataset=f"folder:{folder}",
        views="12",
        device="cpu",
        root=tmp_path / "root",
    )


@pytest.fixture(scope="module")
def _kept() -> dict[str, bytes]:
    return {}


@pytest.fixture
def undisturbed(config: ExtractConfig, tmp_path: Path, _kept: dict[str, bytes]) -> dict[str, bytes]:
    """What every test's extraction writes where nothing goes wrong; made once."""
    if not _kept:
        extract(config.model_copy(update={"root": tmp_path / "undisturbed"}))
        _kept |= chunks(tmp_path / "undisturbed")
    return _kept


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 pages; skips where only an administrator may mount one."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system takes rights that this user does not have")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def extract(config: ExtractConfig) -> str:
    return run_extraction(plan_extraction(config)).status


@pytest.mark.parametrize(
    ("call", "number", "advice"),
    [
        (errno.EIO, 9, "run the same command again"),
        (errno.ENOSPC, 40, "free some space"),
        (errno.EDQUOT, 25, "quota"),
        (errno.EROFS, 45, "read-only"),
        (errno.EACCES, 33, "you may not write there"),
    ],
)
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_an_error_of_the_disk_is_one_sentence_and_the_same_command_goes_on(
    config: ExtractConfig,
    undisturbed: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    call: int,
    number: int,
    advice: str,
    where: str,
) -> None:
    owner = os if where == "fsync" else Path
    real, calls = getattr(owner, where), 0

    def failing(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise OSError(call, os.strerror(call))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(owner, where, failing)
        with pytest.raises(StoreWriteError, match="cannot be written") as caught:
            extract(config)
    assert advice in caught.value.facts["next"]
    root = Path(str(config.root))
    assert not list(root.rglob("*.partial"))
    assert extract(config) in ("resumed", "extracted")
    assert chunks(root) == undisturbed
    assert not list(root.rglob("*.claims"))


def test_a_disk_that_is_really_full_loses_nothing(
    config: ExtractConfig, undisturbed: dict[str, bytes], small_disk: Path, tmp_path: Path
) -> None:
    config = config.model_copy(update={"root": small_disk / "root"})
    with pytest.raises(StoreWriteError) as caught:
        extract(config)
    assert "free some space" in caught.value.facts["next"]
    assert not list(small_disk.rglob("*.partial"))
    grow = ["mount", "-o", f"remount,size={100 * TMPFS_BYTES}", str(small_disk)]
    subprocess.run(grow, check=True)
    assert extract(config) in ("resumed", "extracted")
    assert chunks(small_disk / "root") == undisturbed


def test_a_finished_store_is_not_touched_by_a_disk_that_fails_later(
    config: ExtractConfig, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(config)

    def failing(*arguments: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        assert extract(config) == "unchanged"
    (location,) = (path.parent for path in Path(str(config.root)).glob("*/*/*/zarr.json"))
    assert open_store(location).complete
    assert verify_store(location) == []
