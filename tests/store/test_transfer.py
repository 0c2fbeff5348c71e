"""Copies: whole ones are the same bytes, parts are stores of their own, both go on after a stop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from s3_server import S3Server

from rdcache.errors import (
    CorruptShardError,
    SignatureError,
    StaleStoreError,
    StoreIncompleteError,
    UnknownNameError,
    UsageError,
)
from rdcache.store import (
    Fingerprint,
    Location,
    RemotePath,
    Store,
    StoreLayout,
    StoreWriter,
    open_store,
    verify_store,
)
from rdcache.store.housekeeping import remove_store
from rdcache.store.objects import objects_at
from rdcache.store.signatures import new_key
from rdcache.store.signing import sign_store
from rdcache.store.transfer import Part, copy_store

from .conftest import LAYOUT, TAPS, begin, contents, fill, rows_of

PARTS = {
    "teacher": "invented",
    "taps": [[tap.name, tap.kind, list(tap.shape)] for tap in TAPS],
    "views": {"kind": "random", "count": 3},
}


@pytest.fixture
def source(build: Callable[..., Store]) -> Store:
    facts = {
        "dataset": {
            "name": "busi",
            "counts": {"train": {"a": 6}, "val": {"a": 2}, "test": {"a": 2}},
        },
        "teacher": {"name": "timm:x", "default_tap": "layer4"},
        "views": {"kind": "random", "count": 3},
    }
    outcomes = {(0, 3): 2, (1, 5): 2}  # two that were not finite
    return build(fingerprint=Fingerprint(PARTS), facts=facts, outcomes=outcomes)


def bytes_of(location: Location) -> dict[str, bytes]:
    objects = objects_at(location)
    return {name: objects.read(name) or b"" for name in objects.sizes("")}


def same_numbers(copy: Store, source: Store, rows: np.ndarray | None = None) -> bool:
    """Whether a copy's samples, in every view and tap that it has, are those of the source."""
    rows = np.arange(source.samples) if rows is None else rows
    for view in range(copy.views):
        there = copy.available(range(copy.samples), view)
        assert np.array_equal(there, source.available(rows.tolist(), view))
        here, then = copy.read(np.flatnonzero(there), view), source.read(rows[there], view)
        if not all(torch.equal(here[tap], then[tap]) for tap in copy.taps):
            return False
    return True


def test_a_store_comes_back_from_a_bucket_byte_for_byte(
    source: Store, bucket: RemotePath, tmp_path: Path
) -> None:
    pushed = copy_store(source.location, bucket)
    name = f"busi/timm-x/{source.fingerprint.digest[:12]}"
    assert (pushed.status, pushed.store.location) == ("copied", bucket / name)
    assert bytes_of(bucket / name) == bytes_of(source.location)
    pulled = copy_store(bucket / name, tmp_path / "mine")
    assert pulled.store.location == tmp_path / "mine" / name
    assert bytes_of(pulled.store.location) == bytes_of(source.location)
    assert verify_store(pulled.store.location) == []


def test_what_is_there_is_not_copied_again(source: Store, bucket: RemotePath, s3: S3Server) -> None:
    place = copy_store(source.location, bucket).store.location
    s3.requests.clear()
    assert copy_store(source.location, bucket).status == "unchanged"
    assert s3.count("PUT") == s3.count("POST") == 0
    lost = next(iter(objects_at(place).sizes("taps/tokens/c/1")))
    objects_at(place).delete([lost])
    s3.requests.clear()
    assert copy_store(source.location, bucket).status == "copied"
    # The one shard that lost an object, in all its taps.
    shards = {
        path.partition("/c/")[2]
        for verb, path in s3.requests
        if "/taps/" in path and verb == "PUT" and "/c/" in path
    }
    assert shards == {
        it.partition("/c/")[2]
        for it in bytes_of(place)
        if it.startswith("taps/") and it.partition("/c/")[2].startswith("1/0")
    }
    assert bytes_of(place) == bytes_of(source.location)


@pytest.mark.parametrize(
    ("part", "taps", "views"),
    [
        (Part(taps=("pooled",)), ["pooled"], 3),
        (Part(views=2), [tap.name for tap in TAPS], 2),
        (Part(taps=("tokens", "layer4"), views=1), ["layer4", "tokens"], 1),
    ],
)
def test_a_part_is_the_store_that_an_extraction_of_it_would_make(
    source: Store, tmp_path: Path, part: Part, taps: list[str], views: int
) -> None:
    copied = copy_store(source.location, tmp_path / "mine", part).store
    assert list(copied.taps) == taps
    assert copied.views == views
    expected = {
        **PARTS,
        "taps": [tap for tap in PARTS["taps"] if tap[0] in taps],
        "views": {"kind": "random" if views > 1 else "clean", "count": views},
    }
    assert copied.fingerprint == Fingerprint(expected)
    assert copied.manifest["teacher"]["default_tap"] in taps
    assert same_numbers(copied, source)
    assert verify_store(copied.location) == []


@pytest.mark.parametrize("splits", [("train",), ("val", "test"), ("train", "test")])
def test_a_part_may_hold_some_splits_only(
    source: Store, bucket: RemotePath, tmp_path: Path, splits: tuple[str, ...]
) -> None:
    place = copy_store(source.location, bucket).store.location
    copied = copy_store(place, tmp_path / "mine", Part(splits=splits)).store
    rows = np.flatnonzero(np.isin(source.splits, splits))
    assert np.array_equal(copied.uids, source.uids[rows])
    assert np.array_equal(copied.labels, source.labels[rows])
    assert np.array_equal(copied.view_parameters, source.view_parameters[:, rows])
    assert set(copied.manifest["dataset"]["counts"]) == set(splits)
    assert copied.fingerprint.differences(source.fingerprint) == ("splits",)
    assert same_numbers(copied, source, rows)
    assert verify_store(copied.location) == []


def test_a_signature_travels_with_the_whole_and_is_asked_for_on_the_way(
    source: Store, bucket: RemotePath, tmp_path: Path
) -> None:
    private, public, _ = new_key(tmp_path / "ada")
    place = copy_store(source.location, bucket).store.location
    with pytest.raises(SignatureError, match="not signed"):
        copy_store(place, tmp_path / "mine", require_signature=public)
    assert not (tmp_path / "mine").exists()
    sign_store(place, private)
    pulled = copy_store(place, tmp_path / "mine", require_signature=public).store
    assert open_store(pulled.location, require_signature=public).complete
    assert open_store(place, require_signature=public).read([0], 0)
    # Also where a copy was made before the signature.
    copy_store(source.location, tmp_path / "early")
    assert copy_store(place, tmp_path / "early", require_signature=public).status == "unchanged"
    (early,) = (path.parent for path in (tmp_path / "early").glob("*/*/*/zarr.json"))
    assert open_store(early, require_signature=public).complete
    # What others have put at the destination is not taken for the signed store.
    forged = tmp_path / "forged" / "busi" / "timm-x" / source.fingerprint.digest[:12]
    writer = begin(forged, fingerprint=source.fingerprint)
    fill(writer)
    writer.commit({})
    with pytest.raises(SignatureError, match="not signed"):
        copy_store(place, tmp_path / "forged", require_signature=public)
    part = copy_store(place, tmp_path / "mine", Part(views=1), require_signature=public).store
    with pytest.raises(SignatureError, match="not signed"):
        open_store(part.location, require_signature=public)


def test_a_part_that_is_there_already_has_to_go_before_it_is_copied_of_a_signed_store_again(
    source: Store, tmp_path: Path
) -> None:
    private, public, _ = new_key(tmp_path / "ada")
    sign_store(source.location, private)
    part, mine = Part(taps=("pooled",)), tmp_path / "mine"
    place = copy_store(source.location, mine, part, require_signature=public).store.location
    with pytest.raises(SignatureError, match="part is there already") as caught:
        copy_store(source.location, mine, part, require_signature=public)
    assert caught.value.facts["next"].startswith(f"rdcache rm {place}")
    remove_store(place)
    assert copy_store(source.location, mine, part, require_signature=public).status == "copied"
    # Who signs the part itself may go on.
    sign_store(place, private)
    assert copy_store(source.location, mine, part, require_signature=public).status == "unchanged"


def test_a_part_of_everything_is_the_whole(source: Store, tmp_path: Path) -> None:
    part = Part(taps=tuple(source.taps), views=3, splits=("test", "train", "val"))
    copied = copy_store(source.location, tmp_path / "mine", part)
    assert contents(copied.store.location) == contents(source.location)


@pytest.mark.parametrize("part", [Part(splits=("val",)), Part(views=2), Part()])
def test_every_copy_goes_on_after_an_interruption(
    source: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Part
) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "_put_receipt", interrupted)
        with pytest.raises(KeyboardInterrupt):
            copy_store(source.location, tmp_path / "mine", part)
    assert copy_store(source.location, tmp_path / "mine", part).status == "copied"
    copy_store(source.location, tmp_path / "at-once", part)
    (one,), (other,) = (
        [path.parent for path in (tmp_path / root).glob("*/*/*/zarr.json")]
        for root in ("mine", "at-once")
    )
    assert contents(one) == contents(other)


def test_parts_that_are_not_there_are_refused(source: Store, tmp_path: Path) -> None:
    for part, message in (
        (Part(taps=("poled",)), "no tap"),
        (Part(splits=("tran",)), "no split"),
        (Part(views=4), "3 views"),
        (Part(views=0), "3 views"),
    ):
        with pytest.raises((UnknownNameError, UsageError), match=message):
            copy_store(source.location, tmp_path / "mine", part)
    assert not (tmp_path / "mine").exists()


def test_damage_is_not_copied_and_what_is_whole_is_kept(source: Store, tmp_path: Path) -> None:
    victim = source.location / "taps" / "pooled" / "c" / "2" / "1" / "0"
    good = victim.read_bytes()
    victim.write_bytes(good[:9] + bytes([good[9] ^ 4]) + good[10:])
    with pytest.raises(CorruptShardError, match="receipt") as caught:
        copy_store(source.location, tmp_path / "mine")
    assert caught.value.facts["file"] == "taps/pooled/c/2/1/0"
    (place,) = (path.parent for path in (tmp_path / "mine").glob("*/*/*/zarr.json"))
    with pytest.raises(StoreIncompleteError):
        open_store(place)
    victim.write_bytes(good)
    assert copy_store(source.location, tmp_path / "mine").status == "copied"
    assert contents(place) == contents(source.location)


def test_an_unfinished_store_is_not_copied(tmp_path: Path) -> None:
    begin(tmp_path / "store")
    with pytest.raises(StoreIncompleteError):
        copy_store(tmp_path / "store", tmp_path / "mine")


def test_a_store_is_not_copied_onto_itself(source: Store, tmp_path: Path) -> None:
    place = copy_store(source.location, tmp_path / "mine").store.location
    with pytest.raises(UsageError, match="already"):
        copy_store(place, tmp_path / "mine")


def test_an_unfinished_extraction_of_other_shards_is_left_alone(
    source: Store, tmp_path: Path
) -> None:
    place = tmp_path / "mine" / "busi" / "timm-x" / source.fingerprint.digest[:12]
    begin(place, replace(LAYOUT, shard_samples=2), fingerprint=Fingerprint(PARTS))
    before = contents(place)
    with pytest.raises(StaleStoreError, match="laid out otherwise"):
        copy_store(source.location, tmp_path / "mine")
    assert contents(place) == before


def begin_otherwise(source: Store, place: Path, layout: StoreLayout = LAYOUT) -> StoreWriter:
    """An extraction of the same fingerprint on another machine, which gives other last bits."""
    writer = begin(place, layout, fingerprint=source.fingerprint)
    shard = layout.shards()[0]
    tensors = {tap.name: rows_of(tap, shard) for tap in layout.taps}
    tensors["layer4"] = np.nextafter(tensors["layer4"], np.float16(9))
    writer.write(shard, tensors, np.ones(shard.stop - shard.start, np.uint8))
    return writer


def test_what_another_machine_began_is_not_mixed_into_a_copy(source: Store, tmp_path: Path) -> None:
    place = tmp_path / "mine" / "busi" / "timm-x" / source.fingerprint.digest[:12]
    begin_otherwise(source, place)
    assert copy_store(source.location, tmp_path / "mine").status == "copied"
    assert verify_store(place) == []
    assert contents(place) == contents(source.location)
    assert (place / "zarr.json").read_bytes() == (source.location / "zarr.json").read_bytes()


def test_a_copy_into_which_others_write_meanwhile_is_not_declared_whole(
    source: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "mine" / "busi" / "timm-x" / source.fingerprint.digest[:12]
    commit = StoreWriter.commit

    def others_come_first(writer: StoreWriter, *arguments: Any) -> Store:
        begin_otherwise(source, place)
        return commit(writer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "commit", others_come_first)
        with pytest.raises(StaleStoreError, match="meanwhile"):
            copy_store(source.location, tmp_path / "mine")
    copy_store(source.location, tmp_path / "mine")
    assert contents(place) == contents(source.location)


def test_a_damaged_destination_is_named_with_what_to_do(source: Store, tmp_path: Path) -> None:
    place = Path(str(copy_store(source.location, tmp_path / "mine").store.location))
    (place / "label" / "c" / "0").write_bytes(b"nonsense")
    with pytest.raises(StaleStoreError, match="damaged") as caught:
        copy_store(source.location, tmp_path / "mine")
    assert caught.value.facts["next"].startswith(f"rdcache rm {place}")


def test_a_store_is_not_copied_onto_itself_by_a_link_either(source: Store, tmp_path: Path) -> None:
    place = Path(str(copy_store(source.location, tmp_path / "mine").store.location))
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    before = contents(place)
    with pytest.raises(UsageError, match="already"):
        copy_store(place, tmp_path / "link")
    assert contents(place) == before


def test_a_part_that_the_fingerprint_cannot_name_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not say which taps"):
        copy_store(store.location, tmp_path / "mine", Part(taps=("pooled",)))
