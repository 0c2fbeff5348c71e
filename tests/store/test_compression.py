"""Compressed taps: the same bits for everybody, and nothing taken on trust."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
import tensorstore
import torch
import xarray
import zarr
from numcodecs import blosc, zstd

from rdcache.errors import CorruptShardError, StoreFormatError
from rdcache.store import Store, StoreLayout, TapSpec, open_store, verify_store
from rdcache.store.compression import compress, decompress
from rdcache.store.hdf5_export import export_hdf5
from rdcache.store.hdf5_import import import_hdf5
from rdcache.store.shard import encode_shard

from .conftest import LAYOUT, TAPS, begin, contents, fill

SHARD = "taps/pooled/c/0/1/0"
CODECS = ("zstd", "blosc")


def compressed(codec: str) -> StoreLayout:
    return replace(LAYOUT, taps=tuple(replace(tap, codec=codec) for tap in TAPS))


def forge(store: Store, payload: bytes) -> None:
    """Put a payload with a right checksum into the place of the first sample of a shard."""
    chunks = store.layout.shard_samples
    chunk = payload + struct.pack("<I", google_crc32c.value(payload))
    table = np.full((chunks, 2), 2**64 - 1, "<u8")
    table[0] = 0, len(chunk)
    index = table.tobytes()
    checksum = struct.pack("<I", google_crc32c.value(index))
    (store.location / SHARD).write_bytes(chunk + index + checksum)


@pytest.fixture(params=CODECS)
def packed(request: pytest.FixtureRequest, build: Callable[..., Store]) -> Store:
    return build("packed", compressed(request.param), outcomes={(0, 2): 2})


def test_a_compressed_store_reads_bit_for_bit_like_an_uncompressed_one(
    store: Store, packed: Store
) -> None:
    samples, views = [9, 0, 5, 0, 3], [0, 2, 1, 1, 0]
    for verify in (False, True):
        plain = store.read(samples, views, verify=verify)
        batch = packed.read(samples, views, verify=verify)
        for tap in TAPS:
            assert batch[tap.name].dtype == plain[tap.name].dtype
            assert torch.equal(batch[tap.name], plain[tap.name])
    assert not packed.available([2], 0)
    assert verify_store(packed.location) == []


def test_a_large_batch_is_decompressed_by_threads_to_the_same_bits(
    build: Callable[..., Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build(layout=compressed("zstd"))
    alone = store.read(range(10), 0)
    monkeypatch.setattr("rdcache.store.gather_compressed.WORTH_THREADS", 0)
    assert all(torch.equal(rows, alone[tap]) for tap, rows in store.read(range(10), 0).items())


@pytest.mark.parametrize("tap", TAPS, ids=lambda tap: tap.name)
def test_zarr_python_and_tensorstore_decompress_to_the_same_bits(
    packed: Store, tap: TapSpec
) -> None:
    expected = packed.read([3, 4, 5], 0, [tap.name])[tap.name].view(torch.uint8).numpy().tobytes()
    group = zarr.open_group(str(packed.location), mode="r")
    assert np.ascontiguousarray(group[f"taps/{tap.name}"][0, 3:6]).tobytes() == expected
    path = str(packed.location / "taps" / tap.name)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    array = tensorstore.open(spec, read=True).result()
    assert np.ascontiguousarray(array[0, 3:6].read().result()).tobytes() == expected


def test_xarray_decompresses_to_the_same_bits(packed: Store) -> None:
    taps = xarray.open_zarr(str(packed.location), group="taps", consolidated=False)
    values = taps["layer4"].isel(view=1, sample=[4, 2]).to_numpy()
    assert torch.equal(torch.from_numpy(values), packed.read([4, 2], 1, ["layer4"])["layer4"])


def test_two_compressed_stores_of_the_same_numbers_are_the_same_bytes(
    packed: Store, build: Callable[..., Store]
) -> None:
    again = build("again", packed.layout, outcomes={(0, 2): 2})
    assert contents(again.location) == contents(packed.location)


def test_numbers_that_repeat_take_less_space(tmp_path: Path) -> None:
    tap = TapSpec("flat", "vector", (10_000,), "float16")
    rows = np.zeros((3, 10_000), np.float16)
    for codec in CODECS:
        packing = replace(tap, codec=codec)
        pieces = encode_shard(rows, np.ones(3, bool), 4, lambda row, p=packing: compress(p, row))
        assert sum(map(len, pieces)) < rows.nbytes / 10


def test_every_flipped_byte_of_a_compressed_shard_is_found(packed: Store) -> None:
    path = packed.location / SHARD
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        with pytest.raises(CorruptShardError, match=SHARD):
            open_store(packed.location).read([4, 5, 6, 7], 0, ["pooled"], verify=True)
    (problem,) = verify_store(packed.location)
    assert problem.name == SHARD


def test_every_truncation_of_a_compressed_shard_is_found(packed: Store) -> None:
    path = packed.location / SHARD
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(CorruptShardError, match=SHARD):
            open_store(packed.location).read([5], 0, ["pooled"])


def test_a_compressed_shard_that_is_cut_short_or_too_long_is_written_again(
    packed: Store,
) -> None:
    path = packed.location / SHARD
    good = path.read_bytes()
    for bad in (good[:-1], good[1:], good + b"x", b"x" + good, b""):
        path.write_bytes(bad)
        writer = begin(packed.location, packed.layout)
        assert [(shard.view, shard.index) for shard in writer.missing()] == [(0, 1)]
        fill(writer)
        assert path.read_bytes() == good
        writer.commit({})


def bombs(codec: str) -> dict[str, bytes]:
    """Payloads of tap `pooled` (28 bytes) that would become much more, or something else."""
    huge = np.zeros(50_000_000, np.uint8)
    if codec == "blosc":
        honest = blosc.Blosc("lz4", 5, 1).encode(huge)
        lie = honest[:4] + struct.pack("<I", 28) + honest[8:]
        return {"large": honest, "lie": lie, "cut": honest[:12], "other": b"x" * 40}
    honest = zstd.compress(huge, 1, False)
    unknown = honest[:4] + b"\x00\x58" + honest[9:]  # window of 2 MiB, no length
    small = zstd.compress(np.zeros(28, np.uint8), 1, False)
    return {
        "large": honest,
        "two": small + honest,
        "unknown": unknown,
        "cut": honest[:6],
        "other": b"x" * 40,
    }


@pytest.mark.parametrize(
    ("codec", "kind"), [(codec, kind) for codec in CODECS for kind in bombs(codec)]
)
def test_a_payload_of_another_length_is_refused_without_being_decompressed(
    build: Callable[..., Store], codec: str, kind: str
) -> None:
    store = build(layout=compressed(codec))
    forge(store, bombs(codec)[kind])
    reader = open_store(store.location)
    tracemalloc.start()
    with pytest.raises(CorruptShardError, match=SHARD):
        reader.read([4], 0, ["pooled"])
    with pytest.raises(CorruptShardError, match=SHARD):
        reader.read([4], 0, ["pooled"], verify=True)
    assert tracemalloc.get_traced_memory()[1] < 2_000_000
    tracemalloc.stop()
    assert any(problem.name == SHARD for problem in verify_store(store.location))


@pytest.mark.parametrize("codec", CODECS)
def test_damaged_payloads_never_decompress_to_another_length(codec: str) -> None:
    tap = TapSpec("v", "vector", (300,), "float16", codec)
    random = np.random.default_rng(1)
    good = compress(tap, (random.random(600) * 4).astype(np.uint8))
    row = np.empty(600, np.uint8)
    for _ in range(500):
        bad = good.copy()
        bad[random.integers(len(bad), size=3)] ^= random.integers(1, 256, 3).astype(np.uint8)
        try:
            decompress(tap, bad, row)
        except ValueError:
            continue
        assert row.size == 600


def test_a_store_keeps_the_codec_it_was_begun_with(tmp_path: Path) -> None:
    writer = begin(tmp_path / "store", compressed("zstd"))
    fill(writer)
    again = begin(tmp_path / "store", LAYOUT)
    assert again.missing() == []
    assert {tap.codec for tap in again.layout.taps} == {"zstd"}


def test_a_compressed_store_is_exported_and_imported_to_the_same_bytes(
    packed: Store, tmp_path: Path
) -> None:
    export_hdf5(packed, tmp_path / "out.h5")
    import_hdf5(tmp_path / "out.h5", tmp_path / "imported")
    assert contents(tmp_path / "imported") == contents(packed.location)


@pytest.mark.parametrize("changes", [{"codec": "lzma"}, {"codec": ["zstd"]}, {"projected_from": 2}])
def test_a_tap_that_makes_no_sense_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(StoreFormatError):
        replace(TAPS[0], **changes)


def test_a_plain_tap_is_described_as_before() -> None:
    assert TAPS[0].to_dict() == {
        "name": "layer4",
        "kind": "map2d",
        "shape": [3, 2, 2],
        "dtype": "float16",
    }
    packed = replace(TAPS[0], codec="zstd", projected_from=9)
    assert TapSpec.from_dict(packed.to_dict()) == packed
