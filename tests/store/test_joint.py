"""Several stores read in step give what each of them gives, or say why they cannot be."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from rdcache.errors import CorruptShardError, UnknownNameError, UsageError
from rdcache.store import Fingerprint, JointStore, Store, StoreLayout, TapSpec, default_taps
from rdcache.store.quantisation import quantised, with_scales

from .conftest import COLUMNS, LAYOUT, begin, sample_table, view_parameters

Build = Callable[..., Store]
DATASET = {"name": "busi", "digest": "d" * 64, "classes": ["a", "b", "c"]}
SMALL = (TapSpec("s4", "map2d", (3, 2, 2), "int8"), TapSpec("pooled", "vector", (7,), "float32"))


def facts(teacher: str, **dataset: Any) -> dict[str, Any]:
    return {
        "dataset": {**DATASET, **dataset},
        "teacher": {"name": teacher, "weights": {"sha256": teacher}, "default_tap": "pooled"},
        "views": {"kind": "random", "count": 3},
    }


@pytest.fixture
def first(build: Build) -> Store:
    """Of four samples a shard, with every kind of tap; one pair is missing."""
    return build("first", outcomes={(1, 3): 2}, facts=facts("one"))


@pytest.fixture
def second(tmp_path: Any) -> Store:
    """Of two views and eight samples a shard, one tap in int8; another pair is missing."""
    layout = StoreLayout(10, (10, 6), with_scales(SMALL), shard_samples=8)
    own = {"fingerprint": Fingerprint({"teacher": "two"}), "facts": facts("timm:two")}
    writer = begin(tmp_path / "second", layout, **own)
    for shard in writer.missing():
        random = torch.Generator().manual_seed(shard.view)
        count = shard.stop - shard.start
        values = {tap.name: torch.randn(count, *tap.shape, generator=random) for tap in SMALL}
        tensors = {name: it.numpy() for name, it in quantised(values, SMALL).items()}
        outcome = np.ones(count, np.uint8)
        if (shard.view, shard.start) == (1, 0):
            outcome[5] = 2
        writer.write(shard, tensors, outcome)
    return writer.commit({})


def test_what_is_read_jointly_is_what_each_store_gives(first: Store, second: Store) -> None:
    joint = JointStore([first, second])
    samples, views = [5, 0, 9, 2, 2], [0, 1, 0, 1, 0]
    everything = joint.read(samples, views)
    own = {
        "one": (first, first.read(samples, views)),
        "timm-two": (second, second.read(samples, views)),
    }
    assert len(everything) == len(first.taps) + len(second.taps)
    for teacher, (_, batch) in own.items():
        for name, tensor in batch.items():
            assert torch.equal(everything[f"{teacher}.{name}"], tensor), name
    stored = joint.read_stored(samples, views)
    for teacher, (store, _) in own.items():
        for name, tensor in store.read_stored(samples, views).items():
            assert torch.equal(stored[f"{teacher}.{name}"], tensor), name
    assert "timm-two.s4.scale" in stored
    assert np.array_equal(joint.array("one.pooled")[:], first.array("pooled")[:])


def test_buffers_and_copies_in_other_processes_work_as_ever(first: Store, second: Store) -> None:
    joint = pickle.loads(pickle.dumps(JointStore([first, second])))
    for empty, read in (
        (joint.empty_batch, joint.read),
        (joint.empty_stored_batch, joint.read_stored),
    ):
        buffers = empty(3)
        batch = read([1, 2, 9], 0, out=buffers)
        again = read([1, 2, 9], 0)
        assert all(batch[name] is buffers[name] for name in batch)
        assert all(torch.equal(batch[name], again[name]) for name in again)


@pytest.mark.parametrize("mapped", [False, True])
def test_available_is_what_all_of_them_hold(first: Store, second: Store, mapped: bool) -> None:
    joint = JointStore([first, second])
    for store in (first, second) if mapped else ():
        for view in range(store.views):
            store.read(np.flatnonzero(store.available(range(10), view)), view)
    assert joint.views == 2
    for view in range(2):
        pairs = [store.available(range(10), view) for store in (first, second)]
        assert np.array_equal(joint.available(range(10), view), pairs[0] & pairs[1])
    assert not joint.available([3, 5], 1).any()
    with pytest.raises(UsageError, match=r"sample 5 has no tensors for view 1.*NaN") as caught:
        joint.read([5], 1)
    assert str(second.location) in caught.value.facts["store"]
    with pytest.raises(UsageError, match="there is no view 2"):
        joint.read([0], 2)
    with pytest.raises(UnknownNameError, match="pooled"):
        joint.read([0], 0, ["pooled"])


def test_it_is_described_by_its_members(first: Store, second: Store) -> None:
    joint, reverse = JointStore([first, second]), JointStore([second, first])
    assert joint.manifest["teacher"]["name"] == "one+timm:two"
    assert joint.manifest["dataset"] == first.manifest["dataset"]
    assert joint.manifest["views"]["count"] == 2
    assert default_taps(joint) == {"one": "one.pooled", "timm:two": "timm-two.pooled"}
    assert default_taps(first) == {"one": "pooled"}
    assert (joint.uids == first.uids).all()
    assert (joint.splits == first.splits).all()
    assert joint.view_parameters.shape[0] == 2
    assert joint.layout.shard_samples == 8
    digests = {it.fingerprint.digest for it in (first, second, joint, reverse)}
    assert len(digests) == 4, "the order is that of the weights"
    assert joint.members == (first, second)
    assert first.members == (first,)


@pytest.mark.parametrize(
    ("what", "changes", "said"),
    [
        ("dataset digests", {"facts": facts("two", digest="e" * 64)}, "eeeeeeee…"),
        ("classes", {"facts": facts("two", classes=["c", "b", "a"])}, "c, b, a"),
        (
            "splits",
            {
                "samples": replace(sample_table(LAYOUT), splits=("train",) * 6 + ("val",) * 4),
                "facts": facts("two", digest="e" * 64),
            },
            "val 4",
        ),
        (
            "labels and groups",
            {
                "samples": replace(
                    sample_table(LAYOUT),
                    groups=np.full(10, -1),
                    labels=sample_table(LAYOUT).labels[::-1].copy(),
                ),
                "facts": facts("two", digest="e" * 64),
            },
            "train 6",
        ),
        (
            "images",
            {"samples": replace(sample_table(LAYOUT), uids=sample_table(LAYOUT).uids[::-1])},
            "train 6",
        ),
        ("views", {"view_parameters": view_parameters(LAYOUT)[::-1].copy()}, "random"),
        ("views", {"view_columns": COLUMNS[::-1]}, "random"),
    ],
)
def test_stores_that_are_not_in_step_are_refused_by_what_differs(
    first: Store, build: Build, what: str, changes: dict[str, Any], said: str
) -> None:
    other = build("other", **{"facts": facts("two"), **changes})
    with pytest.raises(UsageError, match=f"in step: their {what} differ") as caught:
        JointStore([first, other])
    assert str(first.location) in caught.value.facts["one"]
    assert str(other.location) in caught.value.facts["other"]
    assert said in caught.value.facts["other"]


def test_two_stores_of_one_teacher_are_refused(first: Store, build: Build) -> None:
    with pytest.raises(UsageError, match="2 of these stores are of the teacher one"):
        JointStore([first, build("again", facts=facts("one"))])


def test_damage_is_placed_where_the_members_own_shards_have_it(first: Store, second: Store) -> None:
    path = second.location / "taps/pooled/c/1/0/0"
    content = bytearray(path.read_bytes())
    content[2 * (7 * 4 + 4)] ^= 1  # of the third sample: seven float32 and a checksum each
    path.write_bytes(content)
    joint = JointStore([first, second])
    with pytest.raises(CorruptShardError) as caught:
        joint.read([9, 2, 4], [0, 1, 1], ["timm-two.pooled"], verify=True)
    assert caught.value.facts["store"] == str(second.location)
    assert caught.value.facts["shard"] == "view 1, number 0 (samples 0 to 5)"
    assert len(joint.read([9, 4], [0, 1], ["timm-two.pooled"], verify=True)) == 1
