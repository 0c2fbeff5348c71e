"""What is read from a bucket is kept: once each, right, within its limit, and usable offline."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import S3Server

from rdcache.errors import BucketError, FileWriteError, UsageError
from rdcache.store import RemotePath, Store, open_store
from rdcache.store.download_cache import DownloadCache, parse_size

from .conftest import LAYOUT, begin, fill


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


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache = DownloadCache(tmp_path / "downloads", 300)
    for number, name in enumerate("abc"):
        path = cache.keep(name, 100, lambda path: None)
        os.utime(path, (number + 1, number + 1))
    assert cache.find("a") is not None  # used just now
    cache.keep("d", 100, lambda path: None)
    assert [name for name in "abcd" if cache.find(name)] == ["a", "c", "d"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 120), max_size=30))
def test_no_sequence_of_files_exceeds_the_limit(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    cache = DownloadCache(tmp_path_factory.mktemp("cache"), 100)
    for number, size in enumerate(sizes):
        if size > 100:
            with pytest.raises(UsageError, match="smaller than one file"):
                cache.keep(f"x/{number}", size, lambda path: None)
        else:
            cache.keep(f"x/{number}", size, lambda path: None)
            assert cache.find(f"x/{number}") is not None
        assert cache.nbytes() <= 100


def test_a_download_that_fails_leaves_nothing(tmp_path: Path) -> None:
    cache = DownloadCache(tmp_path / "downloads", 1000)

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(FileWriteError, match="download cache") as caught:
        cache.keep("a", 100, fail)
    assert caught.value.facts["why"] == "No space left on device"
    assert cache.nbytes() == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [("50 GB", 5 * 10**10), ("1.5tb", 15 * 10**11), ("0", 0), ("12MB", 12 * 10**6)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "much", "-1 GB", "1e999", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="no size"):
        parse_size(text)
