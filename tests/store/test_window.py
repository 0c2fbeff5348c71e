"""Batches by one indexing of mapped memory: the same bits, the same checks, the same errors."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import torch

from rdcache.errors import CorruptShardError, UsageError
from rdcache.store import Store, TapSpec, buffers, open_store, shard, window
from rdcache.store import gather as gathering
from rdcache.store.pages import map_file
from rdcache.store.shard import index_bytes
from rdcache.store.window import Window

from .conftest import LAYOUT, begin, fill

SHARD = "taps/pooled/c/0/1/0"  # samples 4 to 7 of the clean view


def bits(batch: dict[str, torch.Tensor]) -> dict[str, tuple[torch.dtype, bytes]]:
    return {
        name: (rows.dtype, rows.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for name, rows in batch.items()
    }


def read_a_sample_of_each_shard(store: Store) -> None:
    shards = store.layout.shards()
    store.read([shard.start for shard in shards], [shard.view for shard in shards])


def change(store: Store, place: slice, to: bytes) -> None:
    path = Path(str(store.location)) / SHARD
    data = bytearray(path.read_bytes())
    data[place] = to
    tail = index_bytes(LAYOUT.shard_samples)
    data[-4:] = google_crc32c.value(bytes(data[-tail:-4])).to_bytes(4, "little")
    path.write_bytes(data)


def test_where_shards_are_mapped_a_new_batch_is_one_indexing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = bits(store.read([5, 0, 4, 5], 0))  # shards of validation and test are never touched
    with monkeypatch.context() as patch:
        patch.delattr(gathering, "fill_rows")
        after = store.read([5, 0, 4, 5], 0)
    assert bits(after) == before
    after["pooled"].zero_()  # it is the caller's own, and no view of the file
    assert bits(store.read([5, 0, 4, 5], 0)) == before


def test_what_several_threads_copy_faster_is_left_to_them(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "COPYING_THREADS", 2)
    monkeypatch.setattr(buffers, "WORTH_A_THREAD", 1)
    before = bits(store.read([5, 0], 0))
    monkeypatch.setattr(Window, "copies", None)
    assert bits(store.read([5, 0], 0)) == before


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("way", ["verify", "verify_shards"])
def test_a_flipped_bit_is_found_also_where_all_is_mapped(store: Store, way: str, out: bool) -> None:
    change(store, slice(3, 4), b"?")  # of sample 4
    opened = open_store(store.location, verify_shards=way == "verify_shards")
    opened.read([5, 6, 0], 0)
    opened.read([5, 6, 0], 0)
    into = opened.empty_batch(2, ["pooled"]) if out else None
    for _ in range(2):
        with pytest.raises(CorruptShardError, match=SHARD):
            opened.read([5, 4], 0, ["pooled"], verify=way == "verify", out=into)


def test_a_payload_that_is_missing_is_no_other_ones_bytes(store: Store) -> None:
    tail = index_bytes(LAYOUT.shard_samples)
    change(store, slice(-tail, 16 - tail), b"\xff" * 16)  # of sample 4, which was extracted
    opened = open_store(store.location)
    for _ in range(2):  # the second time all is mapped
        opened.read([3, 5], 0)
        with pytest.raises(CorruptShardError, match=SHARD):
            opened.read([3, 4], 0, ["pooled"])


def test_a_shard_that_is_shorter_than_a_sample_is_a_corrupt_one(tmp_path: Path) -> None:
    layout = replace(LAYOUT, samples=4, extents=(4,), taps=(TapSpec("pooled", "vector", (99,)),))
    writer = begin(tmp_path / "store", layout)
    fill(writer)
    store = writer.commit({})
    index = b"\xff" * 64
    (tmp_path / "store/taps/pooled/c/0/0/0").write_bytes(
        index + google_crc32c.value(index).to_bytes(4, "little")
    )
    for _ in range(2):
        with pytest.raises(CorruptShardError):
            store.read([0], 0)


def test_a_window_sees_files_that_are_added_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "low").write_bytes(bytes(range(100)))
    (tmp_path / "high").write_bytes(bytes(range(100, 200)))
    files = sorted(
        (map_file(tmp_path / name) for name in ("low", "high")), key=lambda file: file.ctypes.data
    )
    for order in (files, files[::-1]):
        seen = Window(1, 8, 10)
        assert not is_seen(seen, 0), "nothing is mapped"
        for number, file in enumerate(order):
            samples = slice(4 * number, 4 * number + 3)
            seen.add(file, 0, samples, np.array([0, -1, 7]), verified=False)
        assert not is_seen(seen, 6, 0), "not verified yet"
        seen.verify(np.array([6, 0]))
        addresses = seen.find(seen.numbers(np.array([6, 0]), 0))
        expected = [order[1][7:17].tolist(), order[0][:10].tolist()]
        assert seen.copies(addresses).tolist() == expected
        assert [payload.tolist() for payload in seen.payloads(addresses)] == expected
        behind = [order[1][17:21], order[0][10:14]]
        assert seen.checksums(addresses).tolist() == [int(it.view("<u4")[0]) for it in behind]
        assert not is_seen(seen, 6, 1), "not in the file"
        assert not is_seen(seen, 3), "of no file"
        assert not is_seen(seen, 6, 4), "not verified"
    monkeypatch.setattr(window, "MOST_BYTES", 100)
    wide = Window(1, 8, 10)
    wide.add(files[0], 0, slice(0, 1), np.array([0]), verified=True)
    assert not is_seen(wide, 0)


def is_seen(seen: Window, *samples: int) -> bool:
    for look in (seen.copies, seen.payloads):
        try:
            look(seen.find(seen.numbers(np.array(samples), 0)))
        except IndexError:
            return False
    return True


OUTSIDE = [-1, -10, -11, -15, -20, -21, 10, 19, 20, 2**62, -(2**62)]
VIEWS_OUTSIDE = [-1, -3, -4, -6, -7, 3, 5, 6, 2**62, 2**63, 2**70]


@pytest.mark.parametrize("out", [False, True])
@pytest.mark.parametrize("checked", [False, True])
def test_numbers_out_of_range_are_refused_also_where_all_is_mapped(
    store: Store, checked: bool, out: bool
) -> None:
    assert (store.samples, store.views) == (10, 3)
    opened = open_store(store.location, verify_shards=checked)
    read_a_sample_of_each_shard(opened)
    into = opened.empty_batch(2) if out else None
    for sample in OUTSIDE:
        for views in (0, [0, 1]):
            with pytest.raises(UsageError, match=f"there is no sample {sample}"):
                opened.read([1, sample], views, out=into)
    for view in VIEWS_OUTSIDE:
        with pytest.raises(UsageError, match=f"there is no view {view}"):
            opened.read([1, 0], view, out=into)
        if abs(view) < 2**63:
            with pytest.raises(UsageError, match=f"there is no view {view}"):
                opened.read([1, 0], [0, view], out=into)
        with pytest.raises(UsageError, match="there is no view"):
            opened.read([], view)
    with pytest.raises(UsageError, match=f"there is no sample {2**64 - 11}"):
        opened.read(np.array([1, 2**64 - 11], np.uint64), 0, out=into)


def test_what_was_not_stored_is_refused_whatever_its_shard_says(store: Store) -> None:
    store._outcome[0, 4] = 2
    for _ in range(2):
        store.read([0, 5], 0)
    with pytest.raises(UsageError, match="sample 4 has no tensors"):
        store.read([5, 4], 0)


@pytest.mark.parametrize("out", [False, True])
def test_a_payload_is_checked_when_it_is_first_read_also_where_all_is_mapped(
    store: Store, monkeypatch: pytest.MonkeyPatch, out: bool
) -> None:
    opened = open_store(store.location, verify_shards=True)
    read_a_sample_of_each_shard(opened)
    expected = bits(store.read([5, 6, 0], 0, ["pooled"]))
    monkeypatch.setattr(gathering.MappedTap, "gather", None)
    checked: list[int] = []
    crc32c = shard.crc32c

    def counted(payload: np.ndarray) -> int:
        checked.append(len(payload))
        return crc32c(payload)

    monkeypatch.setattr(shard, "crc32c", counted)
    into = opened.empty_batch(3, ["pooled"]) if out else None
    for _ in range(2):
        assert bits(opened.read([5, 6, 0], 0, ["pooled"], out=into)) == expected
    assert len(checked) == 2, "samples 5 and 6, and 0 when its shard was touched"


CHILDREN = """
import os, signal, sys, threading
from rdcache.store import open_store
sys.setswitchinterval(1e-5)
store = open_store(sys.argv[1])
everything = [(view, n) for view, extent in enumerate(store.extents) for n in range(extent)]
views, samples = [list(it) for it in zip(*everything)]
def read(): return {name: rows.float() for name, rows in store.read(samples, views).items()}
expected = read()
half_mapped = open_store(sys.argv[1])
half_mapped.read([0], 0)
def check():
    for _ in range(4):
        got = read()
        same.append(all(got[name].equal(rows) for name, rows in expected.items()))
for number in range(40):
    if number == 30:  # from now on as if a thread of the parent were mapping a shard
        store = half_mapped
        store._mapped["pooled"]._lock.acquire()
    if (child := os.fork()) == 0:
        signal.alarm(60)
        same, threads = [], [threading.Thread(target=check) for _ in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        os._exit(0 if same == [True] * 16 else 1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, status
"""


def test_a_window_opens_also_where_shards_were_mapped_that_are_never_read(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = store._mapped["pooled"]
    mapped.touch_all()
    for _ in range(3):  # until all shards are looked at again
        store.read([0, 1, 2, 3], 0, ["pooled"])
    monkeypatch.delattr(gathering, "fill_rows")
    store.read([0, 1, 2, 3], 0, ["pooled"])


def test_threads_of_a_forked_child_read_the_same(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILDREN, str(store.location)],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
