"""What a writer accepts, how a layout is planned, and what a fingerprint tells apart."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdcache.errors import StaleStoreError, StoreFormatError, StoreWriteError, UsageError
from rdcache.store import (
    Fingerprint,
    SampleTable,
    ShardRef,
    Store,
    StoreLayout,
    TapSpec,
    verify_store,
)
from rdcache.store.objects import LocalObjects
from rdcache.store.shard import decode_index, encode_shard

from .conftest import FINGERPRINT, LAYOUT, TAPS, begin, contents, fill, rows_of

LAYER4 = TapSpec("layer4", "map2d", (2048, 7, 7))


def ones(shard: ShardRef) -> np.ndarray:
    return np.ones(shard.stop - shard.start, np.uint8)


@given(
    present=st.lists(st.booleans(), min_size=1, max_size=6),
    spare=st.integers(0, 3),
    width=st.integers(1, 5),
)
def test_a_shard_is_its_payloads_with_checksums_and_then_its_index(
    present: list[bool], spare: int, width: int
) -> None:
    rows = np.arange(len(present) * width, dtype="<f4").reshape(-1, width)
    chunks = len(present) + spare
    data = b"".join(encode_shard(rows, np.array(present), chunks))

    expected, index = b"", []
    for row, there in zip(rows, present, strict=True):
        payload = row.tobytes() if there else b""
        index.append((len(expected), len(payload) + 4) if there else (2**64 - 1, 2**64 - 1))
        expected += payload + struct.pack("<I", google_crc32c.value(payload)) if there else b""
    index += [(2**64 - 1, 2**64 - 1)] * spare
    table = b"".join(struct.pack("<QQ", *entry) for entry in index)
    assert data == expected + table + struct.pack("<I", google_crc32c.value(table))
    assert decode_index(data[len(expected) :], chunks).tolist() == [list(e) for e in index]


def test_the_receipt_is_the_sha256_of_each_taps_shard_object(store: Store) -> None:
    receipt = (store.location / "receipt/c/1/1/0/0").read_bytes()
    for number, tap in enumerate(TAPS):
        path = store.location / f"taps/{tap.name}/c/1/1" / "/".join("0" * len(tap.shape))
        digest = hashlib.sha256(path.read_bytes()).digest()
        assert receipt[32 * number : 32 * number + 32] == digest


def test_shards_cover_each_view_as_far_as_it_goes() -> None:
    assert [(s.view, s.start, s.stop) for s in LAYOUT.shards()] == [
        *((0, 0, 4), (0, 4, 8), (0, 8, 10)),
        *((1, 0, 4), (1, 4, 6)),
        *((2, 0, 4), (2, 4, 6)),
    ]


def test_what_is_not_extracted_costs_no_space(build: Callable[..., Store]) -> None:
    store = build()
    assert len(list(store.location.glob("taps/layer4/c/*/*"))) == len(LAYOUT.shards())
    last = store.location / "taps/layer4/c/2/1/0/0/0"  # two of its four samples
    assert last.stat().st_size == 2 * (TAPS[0].nbytes + 4) + 4 * 16 + 4


@pytest.mark.parametrize("tap", [LAYER4, TapSpec("x", "tokens", (197, 768), "float32")])
def test_planned_shards_are_near_their_target(tap: TapSpec) -> None:
    layout = StoreLayout.plan((tap, TapSpec("pooled", "vector", (8,))), (100_000, 70_000))
    assert 64 * 2**20 <= layout.shard_samples * tap.nbytes <= 128 * 2**20
    assert layout.shard_samples.bit_count() == 1
    assert (layout.samples, layout.views) == (100_000, 2)


def test_a_small_dataset_gets_no_larger_shards_than_it_needs() -> None:
    assert StoreLayout.plan((LAYER4,), (60,)).shard_samples == 64
    assert StoreLayout.plan((LAYER4,), (1,)).shard_samples == 1
    giant = TapSpec("volume", "map3d", (512, 128, 128, 128), "float32")
    assert StoreLayout.plan((giant,), (60,)).shard_samples == 1


def test_an_incomplete_store_is_reopened_as_it_was_laid_out(tmp_path: Path) -> None:
    writer = begin(tmp_path / "store")
    first = writer.missing()[0]
    writer.write(first, {tap.name: rows_of(tap, first) for tap in TAPS}, ones(first))
    again = begin(tmp_path / "store", replace(LAYOUT, shard_samples=2))
    assert again.layout == LAYOUT
    assert again.missing() == LAYOUT.shards()[1:]


def test_a_complete_store_has_nothing_missing_and_is_left_as_it_is(store: Store) -> None:
    before = contents(store.location)
    writer = begin(store.location)
    assert writer.missing() == []
    assert contents(store.location) == before


def test_two_stores_of_the_same_numbers_are_the_same_bytes(build: Callable[..., Store]) -> None:
    assert contents(build("one").location) == contents(build("two").location)


def test_a_store_of_another_fingerprint_is_refused_with_the_parts_that_differ(
    store: Store,
) -> None:
    other = Fingerprint({**FINGERPRINT.parts, "teacher": "another"})
    with pytest.raises(StaleStoreError, match="teacher") as caught:
        begin(store.location, fingerprint=other)
    assert caught.value.facts["differs in"] == "teacher"


def test_a_store_of_other_samples_under_the_same_fingerprint_is_refused(store: Store) -> None:
    with pytest.raises(StaleStoreError):
        begin(store.location, replace(LAYOUT, samples=11, extents=(11, 6, 6)))


def test_a_zarr_group_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    before = contents(tmp_path)
    with pytest.raises(UsageError, match="no rdcache store"):
        begin(tmp_path)
    assert contents(tmp_path) == before


def test_receipts_without_a_manifest_count_for_nothing(store: Store) -> None:
    (store.location / "zarr.json").unlink()
    assert begin(store.location).missing() == LAYOUT.shards()


def test_temporary_files_of_dead_writers_are_cleaned_on_reopening(tmp_path: Path) -> None:
    writer = begin(tmp_path / "store")
    stray = writer.location / "taps/layer4/c/0/0/0/0/.0.dead.partial"
    stray.parent.mkdir(parents=True)
    stray.write_bytes(b"half")
    assert begin(writer.location).missing() == LAYOUT.shards()
    assert not stray.exists()


def test_a_tap_that_changes_its_dtype_is_written_anew(tmp_path: Path) -> None:
    writer = begin(tmp_path / "store")
    fill(writer)
    wide = tuple(replace(tap, dtype="float32") for tap in TAPS)
    writer = writer.restart_with(wide)
    assert writer.missing() == LAYOUT.shards()
    fill(writer)
    store = writer.commit({})
    assert store.read([0], 0)["layer4"].numpy().dtype == np.float32
    assert store.array("layer4").dtype == np.float32
    with pytest.raises(StaleStoreError, match="only the dtype"):
        writer.restart_with(wide[1:])


def test_tensors_that_are_not_what_the_tap_declares_are_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    writer = begin(tmp_path / "store")
    before = contents(writer.location)
    first = writer.missing()[0]
    good = {tap.name: rows_of(tap, first) for tap in TAPS}
    for bad in (good["logits"].astype(np.float32), good["logits"][:3], good["logits"][:, :2]):
        with pytest.raises(StoreFormatError, match="logits"):
            writer.write(first, {**good, "logits": bad}, ones(first))
    for outcome in (np.zeros(4, np.uint8), np.ones(3, np.uint8)):
        with pytest.raises(StoreFormatError, match="outcome"):
            writer.write(first, good, outcome)
    with pytest.raises(StoreFormatError, match="not of this store"):
        writer.write(ShardRef(0, 0, 0, 3), good, ones(first))
    assert contents(writer.location) == before


def test_view_parameters_that_do_not_fit_are_refused_and_nothing_is_created(
    tmp_path: Path,
) -> None:
    with pytest.raises(StoreFormatError, match="do not fit"):
        begin(tmp_path / "store", view_parameters=np.zeros((3, 9, 6)))
    assert not (tmp_path / "store").exists()


def test_equal_fingerprints_have_equal_digests_whatever_their_order_and_sequence_types() -> None:
    one = Fingerprint({"a": [1, 2], "b": {"x": 1, "y": None}})
    two = Fingerprint({"b": {"y": None, "x": 1}, "a": (1, 2)})
    assert one == two
    assert one.digest == two.digest
    assert hash(one) == hash(two)
    assert one.differences(two) == ()
    assert one.differences(Fingerprint({"a": [1, 2], "c": 3})) == ("b", "c")


def test_the_digest_is_the_sha256_of_canonical_json() -> None:
    expected = hashlib.sha256(b'{"a":[1,2.5],"b":"\\u00e9"}').hexdigest()
    assert Fingerprint({"b": "é", "a": [1, 2.5]}).digest == expected


@pytest.mark.parametrize(
    "values",
    [
        {"uids": ("0" * 31,) * 2},
        {"uids": ("X" * 32,) * 2},
        {"splits": ("train", "holdout")},
        {"splits": ("test", "train")},
        {"labels": np.zeros(3, np.int64)},
    ],
    ids=str,
)
def test_a_sample_table_that_contradicts_itself_is_refused(values: dict[str, object]) -> None:
    good = SampleTable(("0" * 32, "1" * 32), np.zeros(2), ("train", "val"), np.zeros(2))
    with pytest.raises(StoreFormatError):
        replace(good, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"shape": (3, 2)},
        {"shape": (3, 2, 0)},
        {"dtype": "float64"},
        {"kind": "sound"},
        {"name": "../up"},
    ],
    ids=str,
)
def test_a_tap_that_makes_no_sense_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(StoreFormatError):
        replace(TAPS[0], **values)


def test_a_shard_that_another_has_written_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    writer, late = begin(tmp_path / "store"), begin(tmp_path / "store")
    fill(writer)
    writer.commit({})
    before = contents(tmp_path / "store")
    shard = LAYOUT.shards()[0]
    tensors = {tap.name: rows_of(tap, shard) + 1 for tap in LAYOUT.taps}
    assert late.write_if_lacking(shard, tensors, np.ones(shard.stop - shard.start, np.uint8))
    assert contents(tmp_path / "store") == before


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_shard_of_the_old_dtype_never_counts(tmp_path: Path, codec: str) -> None:
    taps = tuple(replace(tap, codec=codec) for tap in LAYOUT.taps)
    late = begin(tmp_path / "store", replace(LAYOUT, taps=taps))
    shard, wide = LAYOUT.shards()[0], replace(taps[0], dtype="float32")
    tensors = {tap.name: rows_of(tap, shard) for tap in taps}
    write = late.write

    def widened_meanwhile(*arguments: Any) -> None:
        begin(tmp_path / "store", late.layout).restart_with((wide, *taps[1:]))
        write(*arguments)

    late.write = widened_meanwhile  # type: ignore[method-assign]
    assert not late.write_if_lacking(shard, tensors, np.ones(shard.stop, np.uint8))
    assert shard in late.renewed().missing()


def test_a_shard_that_is_written_again_has_no_receipt_until_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = begin(tmp_path / "store")
    fill(writer)
    shard = LAYOUT.shards()[0]
    other = {tap.name: rows_of(tap, shard) + 1 for tap in TAPS}
    put = LocalObjects.put

    def killed(self: LocalObjects, name: str, *pieces: bytes) -> None:
        put(self, name, *pieces)
        if name.startswith("taps/layer4"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LocalObjects, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            writer.write(shard, other, ones(shard))
    assert writer.missing() == [shard]
    fill(writer)
    assert verify_store(writer.commit({}).location) == []


@pytest.mark.parametrize("failing", ["taps/layer4", "outcome"])
def test_what_goes_wrong_with_any_object_of_a_shard_leaves_it_without_a_receipt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    writer = begin(tmp_path / "store")
    shard = writer.missing()[0]
    put = LocalObjects.put

    def refuse(self: LocalObjects, name: str, *pieces: bytes) -> None:
        if name.startswith(failing):
            raise StoreWriteError("the store cannot be written.", file=name)
        put(self, name, *pieces)

    monkeypatch.setattr(LocalObjects, "put", refuse)
    with pytest.raises(StoreWriteError):
        writer.write(shard, {tap.name: rows_of(tap, shard) for tap in TAPS}, ones(shard))
    assert writer.missing() == LAYOUT.shards()
