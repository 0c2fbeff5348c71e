"""Stores in buckets, read through the download cache: right, each shard once, and offline."""

from __future__ import annotations

import os
import time
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from s3_server import S3Server

from rdcache.errors import BucketError, CorruptShardError, StoreFormatError, UsageError
from rdcache.store import (
    RemotePath,
    Store,
    StoreLayout,
    TapSpec,
    cached_objects,
    gather,
    list_stores,
    open_store,
    verify_store,
)
from rdcache.store.creating import finished_store
from rdcache.store.download_cache import DownloadCache
from rdcache.store.housekeeping import disk_usage, remove_store
from rdcache.store.manifest import group_document, read_manifest, root_of
from rdcache.store.objects import objects_at
from rdcache.store.remote import RemoteObjects
from rdcache.store.transfer import Part, copy_store

from .conftest import LAYOUT, begin, fill


@pytest.fixture(autouse=True)
def _cache_beside_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RDCACHE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def remote(bucket: RemotePath) -> RemotePath:
    place = bucket / "invented" / "nobody" / "0123456789ab"
    writer = begin(place)
    fill(writer)
    writer.commit({})
    return place


def kept(tmp_path: Path) -> DownloadCache:
    return DownloadCache(tmp_path / "cache" / "downloads", 2**30)


def read_all(store: Store) -> None:
    for view, extent in enumerate(store.extents):
        store.read(range(extent), view)


def test_a_shard_is_downloaded_once(remote: RemotePath, s3: S3Server) -> None:
    read_all(open_store(remote))
    s3.requests.clear()
    read_all(open_store(remote))
    assert s3.requests == [("GET", f"/{str(remote).removeprefix('s3://')}/zarr.json")]


def test_only_the_shards_that_are_read_are_downloaded(remote: RemotePath, s3: S3Server) -> None:
    store = open_store(remote)
    s3.requests.clear()
    store.read([0, 1], 0, ["pooled"])
    assert s3.count("GET", "taps/") == s3.count("GET", "taps/pooled/c/0/0") == 1


def test_what_is_kept_is_used_offline_and_the_rest_is_refused(
    remote: RemotePath, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = open_store(remote).read([0, 1], 0, ["pooled"])["pooled"]
    s3.requests.clear()
    monkeypatch.setenv("RDCACHE_OFFLINE", "1")
    store = open_store(remote)
    assert torch.equal(store.read([0, 1], 0, ["pooled"])["pooled"], expected)
    with pytest.raises(BucketError, match="not kept on this machine"):
        store.read([0], 0, ["layer4"])
    with pytest.raises(BucketError, match="not kept on this machine"):
        open_store(RemotePath(f"{remote}x"))
    assert s3.requests == []


def test_a_repaired_store_is_not_mixed_with_what_was_kept_of_the_old_one(
    remote: RemotePath, bucket: RemotePath
) -> None:
    before = open_store(remote)
    read_all(before)
    other = np.zeros(4, np.uint8) + 1
    writer = begin(remote)
    writer.reopen()
    shard = writer.layout.shard(0, 0)
    tensors = {
        tap.name: np.full((4, *tap.shape), 2, tap.stored_dtype) for tap in writer.layout.taps
    }
    writer.write(shard, tensors, other)
    writer.commit({})
    after = open_store(remote)
    assert (after.read([0], 0, ["pooled"])["pooled"] == 2).all()
    assert not (before.read([0], 0, ["pooled"])["pooled"] == 2).all()


def test_the_cache_stays_under_its_limit_whatever_is_read(
    remote: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = open_store(remote)
    read_all(reference)
    shards = sum(path.stat().st_size for path in tmp_path.glob("cache/downloads/shards/*/*"))
    limit = kept(tmp_path).nbytes() - shards // 2
    monkeypatch.setenv("RDCACHE_CACHE", str(tmp_path / "small"))
    monkeypatch.setenv("RDCACHE_CACHE_SIZE", str(limit))
    store, cache = open_store(remote), DownloadCache.of_environment()
    random = np.random.default_rng(0)
    for _ in range(60):
        samples, view = random.integers(0, 6, 3).tolist(), int(random.integers(3))
        tap = str(random.choice(list(store.taps)))
        here, there = (it.read(samples, view, [tap], verify=True)[tap] for it in (store, reference))
        assert torch.equal(here, there)
        assert cache.nbytes() <= limit
        mapped = [len(tap._maps) for tap in store._mapped.values()]
        assert sum(mapped) < len(LAYOUT.shards()) * len(LAYOUT.taps)


def mapped_bytes(folder: Path) -> int:
    """Bytes of the files below a folder that this process has mapped, deleted ones included."""
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if f"{folder}/" in line:
            start, stop = (int(number, 16) for number in line.split()[0].split("-"))
            total += stop - start
    return total


WIDE = TapSpec("map", "map2d", (64, 14, 14), "float16")
LARGE = StoreLayout(
    samples=96, extents=(96, 40), taps=(WIDE, replace(WIDE, name="more")), shard_samples=8
)


@pytest.fixture
def large(bucket: RemotePath) -> RemotePath:
    """Two taps of twelve shards of 200 kB."""
    place = bucket / "invented" / "nobody" / "large"
    writer = begin(place, LARGE)
    fill(writer)
    writer.commit({})
    return place


def test_what_had_to_make_room_is_let_go_within_a_batch(
    large: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, peak = 700_000, 0
    monkeypatch.setenv("RDCACHE_CACHE_SIZE", str(limit))
    store, keep = open_store(large), DownloadCache.keep

    def watched(*args: Any) -> Path:
        nonlocal peak
        path = keep(*args)
        peak = max(peak, mapped_bytes(tmp_path / "cache"))
        return path

    monkeypatch.setattr(DownloadCache, "keep", watched)
    store.read(range(0, 96, 4), 0)
    shard = 8 * (WIDE.nbytes + 4) + 132
    assert 0 < peak <= limit + 2 * shard  # what is evicted is let go when its room is filled
    assert mapped_bytes(tmp_path / "cache") <= limit


def test_a_shard_in_use_outlives_one_that_is_not(
    large: RemotePath, monkeypatch: pytest.MonkeyPatch, s3: S3Server
) -> None:
    monkeypatch.setenv("RDCACHE_CACHE_SIZE", "500 KB")
    store = open_store(large)
    for sample in (0, 8, 0, 16):  # two shards fit
        store.read([sample], 0, ["map"])
        time.sleep(0.02)
    s3.requests.clear()
    store.read([0], 0, ["map"])
    assert s3.requests == []
    store.read([8], 0, ["map"])
    assert s3.count("GET", "taps/map/c/0/1") == 1


def test_use_is_noted_now_and_then(
    large: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(large)
    store.read([0], 0, ["map"])
    (path,) = (it for it in (tmp_path / "cache/downloads/shards").rglob("*") if it.is_file())
    os.utime(path, (1, 1))
    store.read([0], 0, ["map"])
    assert path.stat().st_mtime == 1
    monkeypatch.setattr(gather, "USE_SECONDS", 0.0)
    store.read([0], 0, ["map"])
    assert path.stat().st_mtime > 1


def test_threads_that_need_one_shard_download_it_once(large: RemotePath, s3: S3Server) -> None:
    stores = [open_store(large) for _ in range(4)]
    s3.requests.clear()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda store: store.read([0], 0, ["map"]), stores))
    assert s3.count("GET", "taps/map/c/0/0") == 1


@pytest.mark.parametrize("name", ["receipt/c/0/0/0/0", "outcome/c/0/0", "label/c/0", "uid/c/0/0"])
def test_a_damaged_small_object_is_never_kept(remote: RemotePath, name: str) -> None:
    objects = objects_at(remote)
    good = objects.read(name) or b""
    objects.put(name, b"x" * len(good))
    with pytest.raises(StoreFormatError, match="does not match the digest"):
        open_store(remote)
    objects.put(name, good)
    assert open_store(remote).read([0], 0)


def downloads(tmp_path: Path, kind: str) -> list[Path]:
    return [path for path in (tmp_path / "cache/downloads" / kind).rglob("*") if path.is_file()]


def emptied(data: bytes) -> bytes:
    return b""


def cut(data: bytes) -> bytes:
    return data[:-5]


def without_labels(data: bytes) -> bytes:
    objects = cached_objects._unpacked(data) or {}
    return cached_objects._packed({**objects, "label/c/0": b"x" * len(objects["label/c/0"])})


@pytest.mark.parametrize(
    ("kind", "damage"),
    [
        ("stores", emptied),
        ("stores", cut),
        ("stores", without_labels),
        ("manifests", emptied),
        ("manifests", cut),
        ("shards", emptied),
        ("shards", cut),
        ("shards", lambda data: data[:-6] + b"xxxxxx"),
    ],
)
def test_a_damaged_file_of_the_cache_is_downloaded_again(
    remote: RemotePath,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    damage: Callable[[bytes], bytes],
) -> None:
    expected = open_store(remote).read([0], 0)
    for path in downloads(tmp_path, kind):
        path.write_bytes(damage(path.read_bytes()))
    monkeypatch.setenv("RDCACHE_OFFLINE", "1")
    with pytest.raises(BucketError, match="not kept on this machine"):
        open_store(remote).read([0], 0)
    monkeypatch.delenv("RDCACHE_OFFLINE")
    again = open_store(remote).read([0], 0)
    assert all(torch.equal(again[tap], expected[tap]) for tap in expected)
    monkeypatch.setenv("RDCACHE_OFFLINE", "1")
    assert open_store(remote).read([0], 0).keys() == expected.keys()


@pytest.mark.parametrize("codec", ["none", "zstd", "blosc"])
def test_an_object_that_is_too_long_for_a_shard_is_not_downloaded(
    bucket: RemotePath, s3: S3Server, tmp_path: Path, codec: str
) -> None:
    place = bucket / "invented" / "nobody" / "packed"
    taps = tuple(replace(tap, codec=codec) for tap in LAYOUT.taps)
    writer = begin(place, replace(LAYOUT, taps=taps))
    fill(writer)
    writer.commit({})
    store = open_store(place)
    store.read([0], 0, ["pooled"])
    objects_at(place).put("taps/volume/c/0/0/0/0/0/0", bytes(100_000))
    s3.requests.clear()
    with pytest.raises(CorruptShardError, match="100000 bytes"):
        store.read([0], 0, ["volume"])
    assert s3.count("GET") == 0
    assert len(downloads(tmp_path, "shards")) == 1
    assert objects_at(place).mapped("taps/volume/c/0/0/0/0/0/0", 1000) is None
    assert objects_at(place).read("taps/volume/c/0/0/0/0/0/0", 1000) is None
    assert [it.what for it in verify_store(place)] == ["is missing, empty or too long"]


def test_a_manifest_in_a_bucket_that_claims_too_much_is_refused_before_it_is_believed(
    remote: RemotePath,
) -> None:
    manifest = read_manifest(remote)
    manifest["layout"] = {"samples": 10**7, "extents": [10**7] * 3, "shard_samples": 1}
    manifest["root"] = root_of(manifest)
    objects_at(remote).put("zarr.json", group_document(manifest))
    tracemalloc.start()
    try:
        with pytest.raises(StoreFormatError, match="claims far more"):
            open_store(remote)
        assert tracemalloc.get_traced_memory()[1] < 10**8
    finally:
        tracemalloc.stop()


def test_offline_every_way_to_a_bucket_gets_the_same_sentence(
    remote: RemotePath, bucket: RemotePath, s3: S3Server, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    store = open_store(remote)
    s3.requests.clear()
    monkeypatch.setenv("RDCACHE_OFFLINE", "1")
    for ask in (
        lambda: list_stores(bucket),
        lambda: verify_store(remote),
        lambda: store.array("pooled"),
        lambda: copy_store(remote, tmp_path / "mine"),
        lambda: disk_usage(remote),
        lambda: begin(bucket / "other"),
        lambda: remove_store(remote),
    ):
        with pytest.raises(BucketError, match="no bucket is asked while RDCACHE_OFFLINE is set"):
            ask()
    assert s3.requests == []


@pytest.mark.parametrize("size", ["0", "1KB"])
def test_copies_need_no_cache(
    remote: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bucket: RemotePath,
    size: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("RDCACHE_CACHE_SIZE", size)
    pulled = copy_store(remote, tmp_path / "mine").store
    copy_store(remote, tmp_path / "mine", Part(splits=("test",)))
    assert copy_store(pulled.location, bucket / "again").status == "copied"
    assert copy_store(pulled.location, bucket / "again").status == "unchanged"
    assert finished_store(remote) is not None
    assert downloads(tmp_path, "") == []
    with pytest.raises(UsageError, match="smaller than one file") as caught:
        open_store(remote)
    assert caught.value.facts["limit"] == {"0": "0 bytes", "1KB": "1.0 KB"}[size]


def test_few_shards_are_held_while_a_part_is_copied(
    large: RemotePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped, most = RemoteObjects.mapped, 0
    references: list[weakref.ref[np.ndarray]] = []

    def watched(*args: Any) -> np.ndarray | None:
        nonlocal most
        data = mapped(*args)
        if data is not None:
            references.append(weakref.ref(data))
        most = max(most, sum(it() is not None for it in references))
        return data

    monkeypatch.setattr(RemoteObjects, "mapped", watched)
    copy_store(large, tmp_path / "mine", Part(splits=("test",)))
    assert len(references) >= 14
    assert most <= 12


def test_what_is_mapped_again_is_checked_again(remote: RemotePath, tmp_path: Path) -> None:
    store = open_store(remote, verify_shards=True)
    store.read([0], 0, ["pooled"])
    (path,) = (tmp_path / "cache" / "downloads" / "shards").glob("*/*")
    data = bytearray(path.read_bytes())
    data[3] ^= 1  # of sample 0
    path.unlink()  # what is mapped stays as it was
    path.write_bytes(data)
    store.read([0], 0, ["pooled"])
    store._mapped["pooled"]._maps.clear()  # as if it had made room
    with pytest.raises(CorruptShardError):
        store.read([0], 0, ["pooled"])
