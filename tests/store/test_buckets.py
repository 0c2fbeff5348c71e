"""Stores in a bucket, against a real S3 server: written, opened, listed, verified, removed."""

from __future__ import annotations

import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from s3_server import S3Server

from rdcache.errors import (
    BucketError,
    CorruptShardError,
    StoreIncompleteError,
    StoreNotFoundError,
    StoreWriteError,
    UsageError,
)
from rdcache.store import (
    RemotePath,
    Store,
    Worker,
    as_location,
    claims_beside,
    list_stores,
    newest_store,
    open_store,
    verify_store,
)
from rdcache.store.housekeeping import delete_garbage, disk_usage, find_garbage, remove_store
from rdcache.store.locations import below
from rdcache.store.objects import objects_at

from .conftest import LAYOUT, begin, contents, fill


def location(bucket: RemotePath, name: str = "0123456789ab") -> RemotePath:
    return bucket / "invented" / "nobody" / name


def make(place: RemotePath) -> Store:
    writer = begin(place)
    fill(writer)
    return writer.commit({})


def objects_of(place: RemotePath) -> dict[str, bytes]:
    """Every object of a store, as `contents` gives the files of one in a folder."""
    objects = objects_at(place)
    return {name: objects.read(name) or b"" for name in objects.sizes("")}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://team", "s3://team"),
        ("s3://team/rdcache/", "s3://team/rdcache"),
        ("gs://team/a b", "gs://team/a b"),
        ("az://container/x", "az://container/x"),
    ],
)
def test_addresses_are_told_from_folders(text: str, expected: str) -> None:
    assert as_location(text) == RemotePath(expected)
    assert as_location("~/stores") == Path.home() / "stores"
    assert as_location(f"{text}") / "x" == RemotePath(f"{expected}/x")
    assert below(RemotePath(expected), RemotePath(expected) / "a" / "b") == "a/b"


@pytest.mark.parametrize("text", ["s3://", "s3:///x", "s3://a/../b", "ftp://x/y", "s3://a/b?c"])
def test_what_is_no_address_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(UsageError, match="address"):
        as_location(text)


def test_a_store_in_a_bucket_is_the_same_objects_as_one_in_a_folder(
    bucket: RemotePath, store: Store
) -> None:
    remote = make(location(bucket))
    mine, local = objects_of(location(bucket)), contents(store.location)
    assert mine.keys() == local.keys()
    assert all(mine[name] == local[name] for name in mine.keys() - {"zarr.json"})
    assert remote.fingerprint == store.fingerprint


def test_a_store_in_a_bucket_reads_the_same_numbers(bucket: RemotePath, store: Store) -> None:
    make(location(bucket))
    remote = open_store(str(location(bucket)))
    samples, views = [5, 0, 3, 0], [2, 1, 0, 0]
    for verify in (False, True):
        here, there = (it.read(samples, views, verify=verify) for it in (store, remote))
        assert all(torch.equal(here[tap], there[tap]) for tap in store.taps)
    assert np.array_equal(remote.uids, store.uids)
    assert np.array_equal(remote.array("layer4")[0, 2:5], store.array("layer4")[0, 2:5])
    assert torch.equal(
        pickle.loads(pickle.dumps(remote)).read([1], 0)["pooled"], store.read([1], 0)["pooled"]
    )


def test_an_extraction_that_was_cut_short_in_a_bucket_goes_on(bucket: RemotePath) -> None:
    place = location(bucket)
    writer = begin(place)
    first = writer.missing()[0]
    fill_one = writer.layout.shards()[:1]
    assert fill_one == [first]
    from .conftest import rows_of

    tensors = {tap.name: rows_of(tap, first) for tap in writer.layout.taps}
    writer.write(first, tensors, np.ones(first.stop - first.start, np.uint8))
    with pytest.raises(StoreIncompleteError, match=r"1 of \d+ shards"):
        open_store(place)
    again = begin(place)
    assert first not in again.missing()
    fill(again)
    again.commit({})
    assert verify_store(place) == []


def test_only_one_of_several_workers_gets_a_claim_in_a_bucket(bucket: RemotePath) -> None:
    claims = claims_beside(location(bucket))
    with Worker(claims) as one, Worker(claims_beside(location(bucket))) as other:
        assert one.claim("extraction")
        assert not other.claim("extraction")
        one.release("extraction")
        assert other.claim("extraction")
        assert other.others() == [one.token]
    with Worker(claims) as last:
        last.remove_traces()
    assert claims.sizes("") == {}


def test_stores_in_buckets_are_listed_chosen_and_measured(bucket: RemotePath) -> None:
    make(location(bucket, "a"))
    make(location(bucket, "b"))
    begin(location(bucket, "c"))
    assert [it.location.name for it in list_stores(bucket)] == ["a", "b", "c"]
    assert newest_store(bucket, dataset="invented") == location(bucket, "b")
    sizes = objects_at(location(bucket, "a")).sizes("")
    assert disk_usage(location(bucket, "a")) == sum(sizes.values()) > 0


def test_a_store_in_a_bucket_is_removed_with_all_its_objects(bucket: RemotePath) -> None:
    make(location(bucket, "a"))
    make(location(bucket, "b"))
    with Worker(claims_beside(location(bucket, "a"))), pytest.raises(UsageError, match="at work"):
        remove_store(location(bucket, "a"))
    remove_store(location(bucket, "a"))
    with pytest.raises(StoreNotFoundError):
        open_store(location(bucket, "a"))
    assert {below(bucket, it.location) for it in list_stores(bucket)} == {"invented/nobody/b"}
    assert find_garbage(bucket) == []


def test_leftovers_in_a_bucket_are_garbage(bucket: RemotePath) -> None:
    make(location(bucket, "a"))
    objects_at(location(bucket, "a")).put(".removed", b"")
    objects_at(location(bucket, "a")).delete(["zarr.json"])
    Worker(claims_beside(location(bucket, "b"))).objects.create("claims/extraction/1", b"dead")
    found = find_garbage(bucket)
    assert {(it.path.name, it.why) for it in found} == {
        ("a", "half-deleted store"),
        ("b.claims", "claims of processes that have ended"),
    }
    for garbage in found:
        delete_garbage(garbage)
    assert objects_at(bucket).sizes("") == {}
    with pytest.raises(UsageError, match="bucket"):
        find_garbage(bucket, unused_days=1)


def test_damage_in_a_bucket_is_found_and_never_read(bucket: RemotePath, s3: S3Server) -> None:
    place = location(bucket)
    make(place)
    objects = objects_at(place)
    name = next(name for name in sorted(objects.sizes("taps/layer4/c")))
    data = bytearray(objects.read(name) or b"")
    data[3] ^= 1
    objects.put(name, bytes(data))
    s3.requests.clear()
    assert [problem.name for problem in verify_store(place)] == [name]
    shards = len(LAYOUT.shards())  # what is said of them is fetched once for all taps
    assert [s3.count("GET", f"/{name}/c/") for name in ("outcome", "receipt")] == [shards] * 2
    with pytest.raises(CorruptShardError, match="does not match its receipt"):
        open_store(place).read([0], 0, ["layer4"])


def test_a_bucket_that_is_not_there_gets_one_sentence(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = RemotePath("s3://no-such-bucket-here/x")
    with pytest.raises(StoreWriteError, match="cannot be written"):
        objects_at(nowhere).put("a", b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("RDCACHE_PATIENCE", "1")
    with pytest.raises(BucketError, match="cannot be read") as caught:
        open_store(nowhere / "b")
    assert "AWS_ACCESS_KEY_ID" in caught.value.facts["next"]
    assert "\n" not in caught.value.facts["why"]


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_process_is_refused_in_a_sentence_and_reads_what_is_kept(
    bucket: RemotePath, tmp_path: Path
) -> None:
    make(location(bucket))
    store = open_store(location(bucket))
    store.read([0], 0, ["pooled"])
    if (child := os.fork()) == 0:
        signal.alarm(20)
        try:
            store.read([0], 0, ["pooled"])
            store.read([0], 0, ["layer4"])
        except UsageError as error:
            (tmp_path / "said").write_text(error.summary)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert "start workers with spawn" in (tmp_path / "said").read_text()
