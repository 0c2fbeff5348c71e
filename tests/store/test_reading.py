"""Every way to read gives the bits of plain Zarr: mapped, into buffers, checked, decompressed, from
a cold disk.
"""

from __future__ import annotations

import errno
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rdcache.errors import CorruptShardError, StoreReadError, UsageError
from rdcache.store import Store, TapSpec, buffers, gather_compressed, objects, open_store, pages
from rdcache.store import gather as gathering
from rdcache.store.pages import Residency, ask_for, is_resident, map_file

from .conftest import LAYOUT, TAPS, begin, fill, rows_of, sample_table, view_parameters

PAIRS = [(view, i) for view, extent in enumerate(LAYOUT.extents) for i in range(extent)]
SHARD = "taps/pooled/c/0/1/0"


def bits(tensor: torch.Tensor | np.ndarray) -> bytes:
    if isinstance(tensor, torch.Tensor):
        return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return np.ascontiguousarray(tensor).tobytes()


@pytest.fixture(scope="module", params=["none", "zstd", "blosc", "int8"])
def kept(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with taps of every kind, kept in one of the ways that there are."""
    return built(tmp_path_factory.mktemp("kept") / "store", request.param)


def built(location: Path, way: str) -> Store:
    if way == "int8":
        small = tuple(replace(tap, dtype="int8") for tap in TAPS)
        taps = tuple(it for tap in small for it in (tap, tap.scales) if it is not None)
    else:
        taps = tuple(replace(tap, codec=way) for tap in TAPS)
    layout = replace(LAYOUT, taps=taps)
    writer = begin(location, layout)
    if way != "int8":
        fill(writer)
        return writer.commit({})
    for shard in layout.shards():
        tensors = {tap.name: rows_of(replace(tap, dtype="float32"), shard) for tap in taps}
        steps = {name: (40 * rows).clip(-127, 127) for name, rows in tensors.items()}
        stored = {tap.name: steps[tap.name].astype(tap.stored_dtype) for tap in taps}
        writer.write(shard, stored, np.ones(shard.stop - shard.start, np.uint8))
    return writer.commit({})


@pytest.fixture(scope="module")
def plain(kept: Store) -> dict[str, np.ndarray]:
    """All numbers, as zarr-python reads them."""
    import zarr

    taps = kept.layout.taps
    return {
        tap.name: zarr.open_array(str(kept.location), path=f"taps/{tap.name}", mode="r")[...]
        for tap in taps
    }


WAYS = ("verify", "check", "out", "cold", "all mapped")
ways = st.fixed_dictionaries({way: st.booleans() for way in WAYS})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(asked=st.lists(st.sampled_from(PAIRS), max_size=9), way=ways)
def test_every_way_to_read_gives_the_bits_of_plain_zarr(
    kept: Store, plain: dict[str, np.ndarray], asked: list[tuple[int, int]], way: dict[str, bool]
) -> None:
    views = np.array([view for view, _ in asked], np.int64)
    samples = np.array([sample for _, sample in asked], np.int64)
    store = open_store(kept.location, verify_shards=way["check"])
    out = store.empty_stored_batch(len(asked)) if way["out"] else None
    with pytest.MonkeyPatch.context() as patch:
        if way["cold"]:
            patch.setattr(pages, "is_resident", lambda data: False)
        if way["all mapped"]:
            store.read_stored([sample for _, sample in PAIRS], [view for view, _ in PAIRS])
        batch = store.read_stored(samples, views, verify=way["verify"], out=out)
    assert batch.keys() == plain.keys()
    for name, rows in batch.items():
        assert out is None or rows is out[name]
        assert bits(rows) == bits(plain[name][views, samples])


@settings(max_examples=10, deadline=None)
@given(asked=st.lists(st.sampled_from(PAIRS), min_size=1, max_size=9))
def test_a_buffer_gets_what_a_new_batch_has(kept: Store, asked: list[tuple[int, int]]) -> None:
    views, samples = [view for view, _ in asked], [sample for _, sample in asked]
    out = kept.empty_batch(len(asked))
    for tensor in out.values():
        tensor.view(torch.uint8).fill_(7)
    batch = kept.read(samples, views, out=out)
    fresh = kept.read(samples, views)
    assert all(batch[name] is out[name] for name in kept.taps)
    assert all(bits(fresh[name]) == bits(out[name]) for name in kept.taps)
    assert all(fresh[name].dtype == out[name].dtype for name in kept.taps)


@pytest.mark.parametrize(
    "change",
    [
        lambda buffer: buffer[:2],
        lambda buffer: torch.cat([buffer, buffer]),
        lambda buffer: buffer.double(),
        lambda buffer: buffer.T.contiguous().T,
        lambda buffer: buffer.clone().requires_grad_(),
        lambda buffer: buffer.to("meta"),
    ],
)
def test_a_buffer_that_a_batch_does_not_fit_is_refused_untouched(
    store: Store, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    buffers = store.empty_batch(3, ["pooled"])
    buffers["pooled"].fill_(5)
    wrong = change(buffers["pooled"])
    with pytest.raises(UsageError, match=r"cannot take the batch[\s\S]*empty_batch"):
        store.read([0, 1, 2], 0, ["pooled"], out={"pooled": wrong})
    assert (buffers["pooled"] == 5).all()


def test_a_buffer_that_is_missing_is_named(store: Store) -> None:
    with pytest.raises(UsageError, match=r"no buffer[\s\S]*logits"):
        store.read([0], 0, ["pooled", "logits"], out=store.empty_batch(1, ["pooled"]))


def test_large_buffers_begin_with_a_huge_page(tmp_path: Path) -> None:
    layout = replace(LAYOUT, taps=(TapSpec("large", "vector", (2**19,), "float32"),))
    writer = begin(tmp_path / "large", layout)
    fill(writer)
    store = writer.commit({})
    batch = store.read(range(10), 0)["large"]
    assert batch.data_ptr() % 2**21 == 0
    assert bits(batch) == b"".join(bits(store.read([n], 0)["large"]) for n in range(10))


@pytest.mark.parametrize("way", ["none", "zstd"])
def test_a_flipped_bit_is_found_when_its_sample_is_first_read(tmp_path: Path, way: str) -> None:
    location = built(tmp_path / "store", way).location
    path = location / SHARD
    data = bytearray(path.read_bytes())
    data[3] ^= 1  # of sample 4
    path.write_bytes(data)
    store = open_store(location, verify_shards=True)
    store.read([0, 5], 0)  # 5 lies in the same shard
    with pytest.raises(CorruptShardError, match=SHARD):
        store.read([5, 4], 0, ["pooled"])
    with pytest.raises(CorruptShardError, match=SHARD):
        store.read([4], 0, ["pooled"])  # nor is it trusted later
    with pytest.raises(CorruptShardError):
        pickle.loads(pickle.dumps(store)).read([4], 0, ["pooled"])
    assert open_store(location).read([5], 0, ["pooled"])


def test_a_sample_is_checked_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    checked, crc32c = [], gathering.shard.crc32c

    def counted(payload: np.ndarray) -> int:
        checked.append(len(payload))
        return crc32c(payload)

    monkeypatch.setattr(gathering.shard, "crc32c", counted)
    opened = open_store(store.location, verify_shards=True)
    opened.read([4, 5], 0, ["pooled"])
    assert len(checked) == 2
    opened.read([6, 4, 5], 0, ["pooled"])
    assert len(checked) == 3
    opened.read([4, 5], 1, ["pooled"])  # another view
    assert len(checked) == 5
    opened.read([4, 5], 0, ["pooled"], verify=True)
    assert len(checked) == 7


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs a list of descriptors")
def test_a_map_keeps_no_descriptor_and_outlives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 100)
    before = sorted(it.name for it in Path("/proc/self/fd").iterdir())
    maps = [map_file(path) for _ in range(50)]
    assert sorted(it.name for it in Path("/proc/self/fd").iterdir()) == before
    path.unlink()
    assert all(data.tobytes() == bytes(range(256)) * 100 for data in maps)
    with pytest.raises(ValueError, match="read-only"):
        maps[0][0] = 1
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match="empty"):
        map_file(tmp_path / "empty")
    with pytest.raises(OSError, match="No such file"):
        map_file(path)


@pytest.fixture(params=[1, 2**12 + 1, 2**20, 2**22])
def cold(request: pytest.FixtureRequest, tmp_path: Path) -> np.ndarray:
    """A map of a file that has been dropped from the page cache: small ones are looked at whole."""
    path = tmp_path / "cold"
    path.write_bytes(b"\1" + os.urandom(request.param - 1))
    if not hasattr(os, "posix_fadvise"):
        pytest.skip("nothing drops a file from the page cache here")
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)
    return map_file(path)


def test_what_is_not_in_memory_is_told_from_what_is(cold: np.ndarray) -> None:
    if is_resident(cold):
        pytest.skip("this file system keeps its files in memory")
    ask_for(cold, 0, cold.size)
    assert int(cold.sum()) > 0
    assert is_resident(cold)


def test_shards_are_looked_at_again_when_as_many_samples_as_they_hold_were_read(
    cold: np.ndarray,
) -> None:
    if is_resident(cold):
        pytest.skip("this file system keeps its files in memory")
    residency = Residency(shard_samples=4)
    assert residency.absent({0}, {0: cold}, 2) == {0}
    assert int(cold.sum()) > 0  # now it is there
    assert residency.absent({0}, {0: cold}, 3) == {0}
    assert residency.absent({0}, {0: cold}, 1) == set()


def test_shards_may_be_mapped_while_all_are_looked_at_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sources = {0: np.zeros(1, np.uint8), 1: np.zeros(1, np.uint8)}
    residency = Residency(shard_samples=4)
    residency.absent({0, 1}, sources, 9)

    def another_thread_maps_one(data: np.ndarray) -> bool:
        sources[len(sources)] = data
        return True

    monkeypatch.setattr(pages, "is_resident", another_thread_maps_one)
    assert residency.absent({0}, sources, 1) == set()
    assert residency.all_there(2)
    assert not residency.all_there(len(sources)), "the others are still to be looked at"


@pytest.mark.skipif(sys.platform != "linux", reason="other kernels are not asked")
def test_files_of_others_are_not_taken_to_be_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"in memory")
    assert is_resident(map_file(path))
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
        assert is_resident(map_file(path)), "who may write to it is told as well"
        patch.setattr(os, "access", lambda *given: False)
        theirs = map_file(path)
    assert not is_resident(theirs)
    assert Residency(4).absent({0}, {0: theirs}, 1) == {0}
    del theirs
    assert is_resident(map_file(path)), "what is mapped in its place is told from it"


@pytest.mark.parametrize(
    ("number", "next_step"),
    [(errno.EACCES, "owner"), (errno.EMFILE, "ulimit"), (errno.ENOMEM, "memory")],
)
def test_a_file_that_the_system_does_not_let_us_read_is_not_said_to_be_missing(
    store: Store, monkeypatch: pytest.MonkeyPatch, number: int, next_step: str
) -> None:
    def refuse(path: Path) -> np.ndarray:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(objects, "map_file", refuse)
    with pytest.raises(StoreReadError, match=SHARD) as caught:
        open_store(store.location).read([4], 0, ["pooled"])
    assert caught.value.facts["why"] == os.strerror(number)
    assert next_step in caught.value.facts["next"]


def test_a_folder_in_the_place_of_a_shard_is_a_missing_shard(store: Store) -> None:
    (Path(str(store.location)) / SHARD).unlink()
    (Path(str(store.location)) / SHARD).mkdir()
    with pytest.raises(CorruptShardError, match=SHARD):
        store.read([4], 0, ["pooled"])


@pytest.mark.parametrize("view", [True, np.True_, [True]])
def test_truth_values_are_no_views(store: Store, view: object) -> None:
    with pytest.raises(UsageError, match="whole numbers"):
        store.read([0], view)  # type: ignore[arg-type]


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_several_threads_fill_a_batch_as_one_does(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffers, "COPYING_THREADS", threads)
    monkeypatch.setattr(buffers, "WORTH_A_THREAD", 1)
    payloads = np.random.default_rng(0).integers(0, 256, (7, 33), np.uint8)
    rows = np.zeros_like(payloads)
    buffers.fill_rows(rows, list(payloads))
    np.testing.assert_array_equal(rows, payloads)


def test_after_an_interruption_nobody_goes_on_filling_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    concatenate, here, ended = np.concatenate, threading.current_thread(), []

    def interrupted(*given: Any) -> np.ndarray:
        if threading.current_thread() is here:
            raise KeyboardInterrupt
        time.sleep(0.1)
        ended.append(True)
        return concatenate(*given)

    monkeypatch.setattr(buffers, "COPYING_THREADS", 4)
    monkeypatch.setattr(np, "concatenate", interrupted)
    rows = np.zeros((4, buffers.WORTH_A_THREAD), np.uint8)
    with pytest.raises(KeyboardInterrupt):
        buffers.fill_rows(rows, list(np.ones_like(rows)))
    assert len(ended) == 3


def test_after_an_interruption_nobody_goes_on_decompressing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = TapSpec("wide", "vector", (2**15,), codec="zstd")
    writer = begin(tmp_path / "wide", replace(LAYOUT, taps=(wide,)))
    fill(writer)
    store = writer.commit({})
    begun, ended, decompress = [], [], gather_compressed.decompress

    class Pool(ThreadPoolExecutor):
        def submit(self, *given: Any) -> Any:
            if begun:
                raise KeyboardInterrupt
            begun.append(True)
            return super().submit(*given)

    def slow(*given: Any) -> None:
        time.sleep(0.1)
        decompress(*given)
        ended.append(True)

    with Pool(2) as pool:
        monkeypatch.setattr(gather_compressed, "computing_threads", lambda: pool)
        monkeypatch.setattr(gather_compressed, "decompress", slow)
        with pytest.raises(KeyboardInterrupt):
            store.read(range(10), 0)
        assert ended
        count = len(ended)
        time.sleep(0.2)
        assert len(ended) == count


def test_threads_that_share_compressed_taps_read_the_same_bits(tmp_path: Path) -> None:
    wide = TapSpec("wide", "vector", (2**15,), codec="zstd")  # so large that threads decompress
    writer = begin(tmp_path / "wide", replace(LAYOUT, taps=(wide,)))
    fill(writer)
    location = writer.commit({}).location
    expected = bits(np.concatenate([rows_of(wide, ref) for ref in LAYOUT.shards() if not ref.view]))
    shared = open_store(location)
    with ThreadPoolExecutor(8) as pool:
        batches = pool.map(lambda _: shared.read(range(10), 0), range(16))
        assert {bits(batch["wide"]) for batch in batches} == {expected}


def test_columns_are_read_only_whether_they_are_maps_or_copies(tmp_path: Path) -> None:
    layout = replace(LAYOUT, samples=10_000, extents=(10_000,) * 3, shard_samples=10_000)
    layout = replace(layout, taps=(TapSpec("one", "vector", (1,)),))
    writer = begin(tmp_path / "wide", layout)
    for shard in layout.shards():
        writer.write(shard, {"one": np.ones((10_000, 1), np.float16)}, np.ones(10_000, np.uint8))
    store = writer.commit({})
    columns = (store.view_parameters, store.labels, store.groups, store.uid_bytes)
    assert not any(column.flags.writeable for column in columns)
    assert np.array_equal(store.view_parameters, view_parameters(layout))
    table = sample_table(layout)
    assert tuple(store.uids) == table.uids
    assert tuple(store.splits) == table.splits
    assert store.samples_of("train").tolist() == np.flatnonzero(store.splits == "train").tolist()
    assert np.array_equal(pickle.loads(pickle.dumps(store)).uids, store.uids)
