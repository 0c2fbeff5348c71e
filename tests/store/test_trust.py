"""Damaged and hostile stores: found out before a wrong number, or too much memory, is given."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rdcache.errors import (
    CorruptShardError,
    StoreFormatError,
    StoreIncompleteError,
    StoreNotFoundError,
)
from rdcache.store import Store, TapSpec, arrays, open_store
from rdcache.store.arrays import all_documents
from rdcache.store.manifest import root_of

from .conftest import COLUMNS, LAYOUT, begin, fill

SHARD = "taps/pooled/c/0/1/0"


def edit(store: Store, change: Callable[[dict[str, Any]], None], name: str = "zarr.json") -> Path:
    """Change a metadata document of a store by hand."""
    path = store.location / name
    document = json.loads(path.read_text())
    change(document["attributes"]["rdcache"] if name == "zarr.json" else document)
    path.write_text(json.dumps(document))
    return store.location


def test_every_flipped_byte_of_a_shard_is_found(store: Store) -> None:
    path = store.location / SHARD
    good = path.read_bytes()
    for position in range(len(good)):
        path.write_bytes(good[:position] + bytes([good[position] ^ 0x10]) + good[position + 1 :])
        with pytest.raises(CorruptShardError, match=SHARD):
            open_store(store.location).read([4, 5, 6, 7], 0, ["pooled"], verify=True)


def test_every_truncation_of_a_shard_is_found_without_asking_for_it(store: Store) -> None:
    path = store.location / SHARD
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(CorruptShardError, match=SHARD):
            open_store(store.location).read([5], 0, ["pooled"])


def test_a_deleted_shard_is_named_with_store_tap_and_place(store: Store) -> None:
    (store.location / SHARD).unlink()
    with pytest.raises(CorruptShardError) as caught:
        store.read([5], 0, ["pooled"])
    assert caught.value.facts["store"] == str(store.location)
    assert caught.value.facts["tap"] == "pooled"
    assert caught.value.facts["shard"] == "view 0, number 1 (samples 4 to 7)"
    assert "rdcache extract" in caught.value.facts["next"]
    assert store.read([3], 0, ["pooled"])["pooled"].shape == (1, 7)


def test_a_shard_in_the_place_of_another_tap_is_found(store: Store) -> None:
    logits = (store.location / "taps/logits/c/0/1/0").read_bytes()
    (store.location / SHARD).write_bytes(logits)
    with pytest.raises(CorruptShardError):
        open_store(store.location).read([5], 0, ["pooled"])


def test_a_sample_that_its_shard_lacks_though_its_outcome_says_stored_is_found(
    build: Callable[..., Store],
) -> None:
    store = build(outcomes={(0, 5): 2})
    (store.location / "outcome/c/0/1").write_bytes(bytes([1, 1, 1, 1]))
    with pytest.raises(StoreFormatError, match="does not match the digest"):
        open_store(store.location)

    def forge(manifest: dict[str, Any]) -> None:
        chunks = [store.location / arrays.outcome_object(s) for s in store.layout.shards()]
        lie = hashlib.sha256(b"".join(chunk.read_bytes() for chunk in chunks)).hexdigest()
        manifest["digests"]["outcome"] = lie
        manifest["root"] = root_of(manifest)

    with pytest.raises(CorruptShardError):
        open_store(edit(store, forge)).read([5], 0)


@pytest.mark.parametrize("array", ["uid", "label", "split", "group", "view", "outcome"])
def test_small_arrays_that_are_not_what_was_written_are_refused(store: Store, array: str) -> None:
    chunk = next(path for path in (store.location / array / "c").rglob("*") if path.is_file())
    good = chunk.read_bytes()
    for bad in (bytes(len(good)), good[:-1], good + b"x", bytes([good[0] ^ 1]) + good[1:]):
        chunk.write_bytes(bad)
        with pytest.raises(StoreFormatError, match=r"digest[\s\S]*rdcache extract"):
            open_store(store.location)
    chunk.unlink()
    with pytest.raises(StoreFormatError, match=array):
        open_store(store.location)


def test_json_that_only_python_reads_is_refused(store: Store) -> None:
    path = store.location / "zarr.json"
    text = path.read_text()
    path.write_text(text.replace('"invented"', "NaN"))
    with pytest.raises(StoreFormatError, match="no JSON"):
        open_store(store.location)
    path.write_text(text.replace('"invented"', "1e999"))
    with pytest.raises(StoreFormatError, match="no JSON"):
        open_store(store.location)


def test_a_store_that_may_not_be_read_is_not_taken_for_missing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(StoreFormatError, match=r"cannot be read[\s\S]*Permission denied"):
        open_store(store.location)


def test_another_schema_is_refused_with_both_numbers(store: Store) -> None:
    location = edit(store, lambda manifest: manifest.update(schema=2))
    with pytest.raises(StoreFormatError, match="another schema version") as caught:
        open_store(location)
    assert (caught.value.facts["has"], caught.value.facts["reads"]) == ("2", "1")


def test_a_changed_fact_of_a_finished_store_is_found(store: Store) -> None:
    with pytest.raises(StoreFormatError, match="its own digest"):
        open_store(edit(store, lambda manifest: manifest.update(created="2000-01-01")))


def test_a_folder_that_is_no_store_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match="no rdcache store"):
        open_store(tmp_path)


def test_a_manifest_that_claims_more_samples_than_its_arrays_hold_is_refused(store: Store) -> None:
    location = edit(store, lambda manifest: manifest["layout"].update(samples=11))
    with pytest.raises(StoreFormatError, match="contradicts its arrays"):
        open_store(location)


def test_a_manifest_that_claims_more_views_than_its_arrays_hold_is_refused(store: Store) -> None:
    location = edit(store, lambda manifest: manifest["layout"].update(extents=[10] * 9))
    with pytest.raises(StoreFormatError, match="contradicts its arrays"):
        open_store(location)


def test_a_manifest_with_another_shape_of_a_tap_is_refused(store: Store) -> None:
    location = edit(store, lambda manifest: manifest["taps"][0].update(shape=[300, 2, 2]))
    with pytest.raises(StoreFormatError, match="layer4"):
        open_store(location)


@pytest.mark.parametrize(
    "change",
    [
        {"extents": [10, 11, 6]},
        {"extents": []},
        {"extents": ["ten"]},
        {"samples": 10.5},
        {"samples": -1},
        {"shard_samples": 0},
        {"shard_samples": None},
    ],
    ids=str,
)
def test_a_layout_that_makes_no_sense_is_refused(store: Store, change: dict[str, Any]) -> None:
    location = edit(store, lambda manifest: manifest["layout"].update(change))
    with pytest.raises(StoreFormatError):
        open_store(location)


@pytest.mark.parametrize("name", ["../../outside", "/absolute", ".hidden", "", "a/b", 7])
def test_a_tap_name_that_leads_elsewhere_is_refused(store: Store, name: Any) -> None:
    location = edit(store, lambda manifest: manifest["taps"][0].update(name=name))
    with pytest.raises(StoreFormatError):
        open_store(location)


def test_a_fingerprint_that_is_not_its_digest_is_refused(store: Store) -> None:
    def forge(manifest: dict[str, Any]) -> None:
        manifest["fingerprint"]["parts"]["teacher"] = "another"

    with pytest.raises(StoreFormatError, match="fingerprint"):
        open_store(edit(store, forge))


def test_a_codec_of_another_kind_is_refused(store: Store) -> None:
    def pickled(document: dict[str, Any]) -> None:
        document["codecs"] = [{"name": "numcodecs.pickle", "configuration": {"id": "pickle"}}]

    with pytest.raises(StoreFormatError, match="contradicts its arrays"):
        open_store(edit(store, pickled, "label/zarr.json"))


def test_a_consistent_lie_about_the_number_of_samples_allocates_nothing(store: Store) -> None:
    huge = replace(LAYOUT, samples=10**15, extents=(10**15, 6, 6))
    for name, document in all_documents(huge, COLUMNS).items():
        (store.location / name).write_bytes(document)
    location = edit(store, lambda manifest: manifest["layout"].update(huge.to_dict()))
    with pytest.raises(StoreFormatError, match="does not match"):
        open_store(location)


def test_a_consistent_lie_about_a_taps_shape_allocates_nothing(store: Store) -> None:
    taps = (TapSpec("layer4", "map2d", (2**20, 2**20, 2**20)), *LAYOUT.taps[1:])
    for name, document in all_documents(replace(LAYOUT, taps=taps), COLUMNS).items():
        (store.location / name).write_bytes(document)

    def forge(manifest: dict[str, Any]) -> None:
        manifest["taps"][0].update(shape=[2**20] * 3)
        manifest["root"] = root_of(manifest)

    location = edit(store, forge)
    with pytest.raises(CorruptShardError):
        open_store(location).read([0], 0, ["layer4"])


def test_a_column_of_another_length_is_refused(store: Store) -> None:
    path = store.location / "label/c/0"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreFormatError, match="label"):
        open_store(store.location)


def test_a_missing_array_is_named(store: Store) -> None:
    (store.location / "split/zarr.json").unlink()
    with pytest.raises(StoreFormatError, match="split"):
        open_store(store.location)


def test_an_incomplete_store_says_how_much_of_it_is_there(tmp_path: Path) -> None:
    writer = begin(tmp_path / "store")
    with pytest.raises(StoreIncompleteError, match="0 of 7 shards"):
        writer.commit({})
    with pytest.raises(StoreIncompleteError, match="0 of 7 shards"):
        open_store(writer.location)
    store = open_store(writer.location, allow_incomplete=True)
    assert not store.complete
    assert not store.available(range(10), 0).any()
    with pytest.raises(ValueError, match="its shard is missing"):
        store.read([0], 0)
    fill(writer)
    assert writer.commit({}).complete


FORKED = """
import hashlib, os, pickle, sys
store = pickle.loads(sys.stdin.buffer.read())  # bytes of the test's own
def digest():
    batch = store.read([9, 0, 5], 0, verify=True)
    return hashlib.sha256(b"".join(bytes(t.flatten().view(__import__("torch").uint8).tolist())
                                   for t in batch.values())).hexdigest()
print(digest(), flush=True)
for _ in range(2):
    if (child := os.fork()) == 0:
        print(digest(), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_store_reads_the_same_after_pickling_into_another_process_and_after_a_fork(
    store: Store,
) -> None:
    import torch

    batch = store.read([9, 0, 5], 0)
    raw = b"".join(t.flatten().view(torch.uint8).numpy().tobytes() for t in batch.values())
    done = subprocess.run(
        [sys.executable, "-c", FORKED],
        input=pickle.dumps(store),
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.decode().split() == [hashlib.sha256(raw).hexdigest()] * 3


def test_a_pickled_store_carries_no_mapped_files(build: Callable[..., Store]) -> None:
    store = build()
    before = len(pickle.dumps(store))
    store.read(range(10), 0)
    assert len(pickle.dumps(store)) == before
