"""Files of the download cache: within its limit, whoever downloads at once."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdcache.errors import FileWriteError, UsageError
from rdcache.store import download_cache
from rdcache.store.download_cache import DownloadCache, parse_size
from rdcache.store.objects import TEMPORARY


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


def writes(size: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_bytes(bytes(size))

    return write


def test_two_downloads_at_once_keep_the_limit(tmp_path: Path) -> None:
    cache, seen = DownloadCache(tmp_path / "downloads", 100), []

    def write(path: Path) -> None:
        time.sleep(0.1)
        seen.append(cache.nbytes())

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: cache.keep(f"shards/{name}", 80, write), "abcd"))
    assert seen == [80] * 4
    assert (cache.folder / ".lock").exists()


def test_what_finds_no_room_beside_the_downloads_of_others_is_told_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_cache, "WAIT_SECONDS", 0.1)
    cache = DownloadCache(tmp_path / "downloads", 100)

    def write(path: Path) -> None:
        with pytest.raises(UsageError, match="too small for all") as caught:
            cache.keep("b", 80, writes(80))
        assert caught.value.facts["limit"] == "100 bytes"

    cache.keep("a", 80, write)


def test_a_download_whose_process_died_makes_room_at_once(tmp_path: Path) -> None:
    cache = DownloadCache(tmp_path / "downloads", 100)
    cache.folder.mkdir()
    (cache.folder / f".b.0123{TEMPORARY}").write_bytes(bytes(90))
    cache.keep("c", 80, writes(80))
    assert cache.nbytes() == 80


def test_what_a_store_cannot_be_opened_without_goes_last(tmp_path: Path) -> None:
    cache = DownloadCache(tmp_path / "downloads", 100)
    for name in ("manifests/m.json", "stores/s.zip", "shards/a", "shards/b"):
        cache.keep(name, 30 if "shards" in name else 20, lambda path: None)
    cache.keep("shards/c", 60, lambda path: None)
    found = [name for name in ("manifests/m.json", "stores/s.zip", "shards/c") if cache.find(name)]
    assert found == ["manifests/m.json", "stores/s.zip", "shards/c"]
