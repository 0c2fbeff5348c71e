"""Cleaning: what is dead goes, what lives or is wanted stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from rdcache.errors import StoreNotFoundError, UsageError
from rdcache.store import Store, Worker, claims_beside, open_store
from rdcache.store.housekeeping import (
    delete_garbage,
    disk_usage,
    find_garbage,
    remove_store,
)

from .conftest import LAYOUT, begin, fill

DAYS = 86_400


def make(root: Path, name: str, complete: bool = True) -> Path:
    location = root / "busi" / "invented" / name
    writer = begin(location, LAYOUT)
    if complete:
        fill(writer)
        writer.commit({})
    return location


def age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


def test_a_removed_store_is_gone_and_its_neighbour_stays(tmp_path: Path) -> None:
    first, second = make(tmp_path, "a"), make(tmp_path, "b")
    nbytes = disk_usage(first)
    assert nbytes == sum(path.stat().st_size for path in first.rglob("*") if path.is_file())
    assert remove_store(first) == nbytes
    assert not first.exists()
    assert isinstance(open_store(second), Store)
    with pytest.raises(StoreNotFoundError):
        remove_store(first)


def test_what_is_no_store_a_link_or_at_work_is_not_removed(tmp_path: Path) -> None:
    location = make(tmp_path, "a", complete=False)
    (tmp_path / "precious").mkdir()
    with pytest.raises(StoreNotFoundError):
        remove_store(tmp_path / "precious")
    (tmp_path / "link").symlink_to(location)
    with pytest.raises(UsageError, match="link"):
        remove_store(tmp_path / "link")
    with Worker(claims_beside(location)), pytest.raises(UsageError, match="at work"):
        remove_store(location)
    assert location.exists()
    assert (tmp_path / "precious").exists()


def test_leftovers_of_the_dead_are_garbage_and_those_of_the_living_are_not(
    tmp_path: Path,
) -> None:
    location = make(tmp_path, "a", complete=False)
    assert find_garbage(tmp_path) == []
    old = location / "uid" / "c" / "0" / ".0.abc.def.partial"
    fresh = old.with_name(".0.abc.fed.partial")
    for path in (old, fresh):
        path.write_bytes(b"half")
    age(old, 2 * 3600)
    with Worker(claims_beside(location)) as worker:
        assert worker.claim("extraction")
        assert [garbage.path for garbage in find_garbage(tmp_path)] == [old]
    # The worker has left; its claims are nobody's now.
    claims = claims_beside(location).location
    found = find_garbage(tmp_path)
    assert {garbage.path for garbage in found} == {old, claims}
    for garbage in found:
        delete_garbage(garbage)
    assert not old.exists()
    assert not claims.exists()
    assert fresh.exists()
    assert location.exists()


def test_a_worker_of_another_machine_that_fell_silent_long_ago_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdcache.store.claims.process_is_gone", lambda process: False)
    location = make(tmp_path, "a")
    elsewhere = Worker(claims_beside(location))
    elsewhere._show_life()
    assert find_garbage(tmp_path) == []
    age(claims_beside(location).location / "workers" / elsewhere.token, 2 * 3600)
    assert [garbage.why for garbage in find_garbage(tmp_path)] == [
        "claims of processes that have ended"
    ]


def test_stores_are_garbage_only_if_that_is_asked_for(tmp_path: Path) -> None:
    unfinished, forgotten = make(tmp_path, "a", complete=False), make(tmp_path, "b")
    recent = make(tmp_path, "c")
    for name in ("zarr.json", "uid/c/0/0"):
        age(forgotten / name, 40 * DAYS)
    assert find_garbage(tmp_path) == []
    assert [it.path for it in find_garbage(tmp_path, incomplete=True)] == [unfinished]
    (found,) = find_garbage(tmp_path, unused_days=30)
    assert (found.path, found.why) == (forgotten, "not opened for 40 days")
    delete_garbage(found)
    assert not forgotten.exists()
    assert recent.exists()


def test_a_half_deleted_store_is_garbage(tmp_path: Path) -> None:
    location = make(tmp_path, "a")
    aside = location.with_name(".a.0123.removed")
    location.rename(aside)
    (found,) = find_garbage(tmp_path)
    assert found.why == "half-deleted store"
    delete_garbage(found)
    assert not aside.exists()
