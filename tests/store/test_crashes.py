"""Whatever kills a writer, the store it leaves can be finished to the same bytes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import forked
import numpy as np
import pytest

from rdcache.errors import StoreIncompleteError, StoreNotFoundError, StoreWriteError
from rdcache.store import ShardRef, StoreLayout, StoreWriter, open_store
from rdcache.store.arrays import receipt_object

from .conftest import begin, contents, fill
from .crash import (
    SLOW,
    SMALL,
    WIDE,
    crash_widening,
    crash_writing,
    write_slowly,
    write_with_limit,
)


def run_program(program: Callable[[Path], None], place: Path) -> str:
    done = forked.finished(program, place)
    assert done.code == 0, done.stderr
    return done.stdout


def finished(writer: StoreWriter) -> dict[str, bytes]:
    fill(writer)
    writer.commit({})
    return contents(writer.location)


def without_receipt(location: Path, layout: StoreLayout) -> list[ShardRef]:
    return [shard for shard in layout.shards() if not (location / receipt_object(shard)).exists()]


def crashed_stores(folder: Path) -> list[Path]:
    """The folders of writers that were killed, by the event that they were killed at."""
    return sorted(folder.iterdir(), key=lambda path: int(path.name))[:-1]


@pytest.fixture(scope="module")
def crashes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for each moment at which a writer was killed; not to be changed."""
    folder = tmp_path_factory.mktemp("crashes")
    run_program(crash_writing, folder)
    return folder


def test_a_writer_killed_at_any_open_or_rename_is_resumed_to_the_same_bytes(
    crashes: Path, tmp_path: Path
) -> None:
    undisturbed = finished(begin(tmp_path / "undisturbed", SMALL))
    killed = crashed_stores(crashes)
    assert len(killed) > 50
    for crashed in killed:
        location = shutil.copytree(crashed, tmp_path / crashed.name)
        writer = begin(location, SMALL)
        assert writer.missing() == without_receipt(location, SMALL)
        assert not list(location.rglob("*.partial"))
        assert finished(writer) == undisturbed


def test_a_kill_in_the_middle_leaves_shards_of_which_only_receipted_ones_count(
    crashes: Path,
) -> None:
    partly = 0
    for location in crashed_stores(crashes):
        try:
            store = open_store(location, allow_incomplete=True)
        except StoreNotFoundError:
            continue
        if not store.complete:
            with pytest.raises(StoreIncompleteError, match="of 3 shards are there"):
                open_store(location)
        missing = without_receipt(location, SMALL)
        partly += 0 < len(missing) < 3
        for shard in SMALL.shards():
            available = store.available(range(shard.start, shard.stop), shard.view)
            assert available.all() == (shard not in missing)
            assert available.any() == (shard not in missing)
    assert partly > 10


def test_a_kill_while_a_tap_changes_its_dtype_is_resumed_to_the_same_bytes(
    tmp_path: Path,
) -> None:
    writer = begin(tmp_path / "undisturbed", SMALL).restart_with(WIDE)
    undisturbed = finished(writer)
    (tmp_path / "killed").mkdir()
    run_program(crash_widening, tmp_path / "killed")

    for location in crashed_stores(tmp_path / "killed"):
        writer = begin(location, SMALL)
        if writer.layout.taps != WIDE:  # killed before the change: it is made now
            writer = writer.restart_with(WIDE)
        assert finished(writer) == undisturbed


def test_a_store_killed_from_outside_again_and_again_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    undisturbed = finished(begin(tmp_path / "undisturbed", SLOW))
    location = tmp_path / "killed"
    random = np.random.default_rng(0)
    for wanted in (1, 13):
        process = forked.Forked(write_slowly, location)
        while len(list(location.glob("receipt/c/*/*/0/0"))) < wanted:
            assert process.code is None, process.stderr
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.02))
        process.kill()

    writer = begin(location, SLOW)
    assert 0 < len(writer.missing()) < len(SLOW.shards())
    assert writer.missing() == without_receipt(location, SLOW)
    assert finished(writer) == undisturbed


def test_a_full_disk_leaves_no_temporary_file_and_the_same_command_goes_on_afterwards(
    tmp_path: Path,
) -> None:
    location = tmp_path / "store"
    said = run_program(write_with_limit, location)

    assert "the store cannot be written" in said
    assert str(location) in said
    assert "run the same command again" in said
    assert not list(location.rglob("*.partial"))
    writer = begin(location, SLOW)
    assert writer.missing() == SLOW.shards()
    assert finished(writer) == finished(begin(tmp_path / "undisturbed", SLOW))


def test_a_root_below_a_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreWriteError, match="--root"):
        begin(tmp_path / "file" / "store")


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a place nobody can write to")
def test_a_root_that_nobody_may_write_to_is_refused_with_its_location() -> None:
    with pytest.raises(StoreWriteError, match="/sys/kernel/rdcache"):
        begin(Path("/sys/kernel/rdcache/store"))


def test_an_error_of_the_disk_is_an_os_error_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(OSError, match="cannot be written"):
        begin(tmp_path / "file" / "store")
