"""Objects are written whole and durably: by few calls, to a disk that begins early, and with their
folders.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import numpy as np
import pytest

from rdcache.errors import StoreWriteError
from rdcache.store import StoreLayout, TapSpec, durability
from rdcache.store.objects import LocalObjects

from .conftest import begin, fill, rows_of


def test_a_call_that_writes_less_than_it_was_given_is_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pieces = [bytes([number % 256]) * (number % 7) for number in range(3000)]
    real = os.writev

    def few_bytes(descriptor: int, pieces: list[memoryview]) -> int:
        return real(descriptor, [b"".join(pieces)[:1000]])

    monkeypatch.setattr(os, "writev", few_bytes)
    LocalObjects(tmp_path).put("a/b/c", *pieces)
    assert (tmp_path / "a/b/c").read_bytes() == b"".join(pieces)


def test_a_shard_takes_few_calls_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tap = TapSpec("pooled", "vector", (4,))
    writer = begin(tmp_path / "store", StoreLayout(256, (256,), (tap,), 256))
    (shard,) = writer.layout.shards()
    real, calls = os.writev, []
    monkeypatch.setattr(os, "writev", lambda *given: calls.append(1) or real(*given))
    writer.write(shard, {"pooled": rows_of(tap, shard)}, np.ones(256, np.uint8))
    assert len(calls) == 3, "the tap, its outcomes and the receipt"


def test_a_large_object_is_handed_to_the_disk_part_by_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[tuple[int, int]] = []
    monkeypatch.setattr(durability, "BYTES_A_CALL", 100)
    monkeypatch.setattr(
        durability, "_begin_writing_back", lambda _, start, nbytes: begun.append((start, nbytes))
    )
    pieces = [bytes([number]) * size for number, size in enumerate((60, 4, 60, 4, 250, 4, 60))]
    LocalObjects(tmp_path).put("a", *pieces)
    assert (tmp_path / "a").read_bytes() == b"".join(pieces)
    assert begun == [(0, 100), (100, 100), (200, 100), (300, 100)]  # the rest is the fsync's


def test_the_system_accepts_the_parts_of_a_large_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No error, that is, from the real call."""
    monkeypatch.setattr(durability, "BYTES_A_CALL", 100)
    monkeypatch.setattr(durability, "NOT_HERE", {errno.EINTR})
    LocalObjects(tmp_path).put("a", *[bytes([number]) * 60 for number in range(9)])
    assert (tmp_path / "a").stat().st_size == 540


def test_a_disk_that_fails_under_a_part_leaves_no_object(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: int) -> int:
        ctypes.set_errno(errno.EIO)
        return -1

    monkeypatch.setattr(durability, "BYTES_A_CALL", 100)
    monkeypatch.setattr(durability, "_sync_file_range", fails)
    with pytest.raises(StoreWriteError):
        LocalObjects(tmp_path).put("a", bytes(150), bytes(150))
    assert list(tmp_path.iterdir()) == []


def test_every_folder_that_is_new_or_has_something_new_is_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(durability, "sync_folder", synced.append)
    LocalObjects(tmp_path).put("a/b/c", b"1")
    assert set(synced) == {tmp_path, tmp_path / "a", tmp_path / "a/b"}


def test_new_folders_are_synced_also_where_nothing_could_be_written_into_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(durability, "sync_folder", synced.append)

    def refuse(descriptor: int, pieces: list[memoryview]) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "writev", refuse)
    with pytest.raises(StoreWriteError):
        LocalObjects(tmp_path).put("a/b/c", b"1")
    assert set(synced) == {tmp_path, tmp_path / "a", tmp_path / "a/b"}


def test_every_folder_is_durable_before_a_store_is_declared_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = begin(tmp_path / "store")
    fill(writer)
    synced: set[Path] = set()
    put = LocalObjects.put

    def noted(self: LocalObjects, name: str, *pieces: bytes) -> None:
        if name == "zarr.json":
            folders = {path for path in (tmp_path / "store").rglob("*") if path.is_dir()}
            assert synced >= folders | {tmp_path, tmp_path / "store"}
        put(self, name, *pieces)

    monkeypatch.setattr(durability, "sync_folder", synced.add)
    monkeypatch.setattr(LocalObjects, "put", noted)
    assert writer.commit({}).complete
