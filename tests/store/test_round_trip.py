"""What is written is what is read: by us, and by the Zarr libraries that never heard of us."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import torch
import xarray
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from rdcache.errors import UnknownNameError, UsageError
from rdcache.store import Store, StoreLayout, TapSpec

from .conftest import COLUMNS, LAYOUT, TAPS, begin, fill, rows_of, sample_table, view_parameters

RANKS = {"map2d": 3, "map3d": 4, "tokens": 2, "vector": 1, "logits": 1}


def bits(values: torch.Tensor | np.ndarray) -> bytes:
    """The stored bytes, which tell -0.0 from 0.0 and know bfloat16."""
    if isinstance(values, torch.Tensor):
        return values.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return np.ascontiguousarray(values).tobytes()


def written(tap: TapSpec, view: int, sample: int, layout: StoreLayout = LAYOUT) -> np.ndarray:
    """One sample as it was handed to the writer."""
    shard = layout.shard(view, sample // layout.shard_samples)
    return rows_of(tap, shard)[sample - shard.start]


@st.composite
def layouts(draw: st.DrawFn) -> StoreLayout:
    samples = draw(st.integers(1, 9))
    train = draw(st.integers(0, samples))
    extents = (samples, *draw(st.lists(st.just(train), max_size=2)))
    taps = tuple(
        TapSpec(
            f"tap{number}",
            kind,
            tuple(draw(st.lists(st.integers(1, 4), min_size=RANKS[kind], max_size=RANKS[kind]))),
            draw(st.sampled_from(["float16", "bfloat16", "float32"])),
        )
        for number, kind in enumerate(
            draw(st.lists(st.sampled_from(sorted(RANKS)), min_size=1, max_size=2))
        )
    )
    findings = draw(st.sampled_from([0, 0, 1, 3]))
    return StoreLayout(samples, extents, taps, draw(st.integers(1, 10)), findings)


@settings(max_examples=25, deadline=None)
@given(layout=layouts(), data=st.data())
def test_any_batch_of_any_store_is_the_bits_that_were_written(
    layout: StoreLayout, data: st.DataObject
) -> None:
    pairs = [(view, i) for view, extent in enumerate(layout.extents) for i in range(extent)]
    lost = set(data.draw(st.lists(st.sampled_from(pairs), max_size=2)))
    asked = data.draw(st.lists(st.sampled_from(pairs), max_size=6).map(lambda p: set(p) - lost))
    views, samples = [view for view, _ in asked], [sample for _, sample in asked]
    with tempfile.TemporaryDirectory() as folder:
        writer = begin(Path(folder) / "store", layout)
        fill(writer, dict.fromkeys(lost, 2))
        store = writer.commit({})
        batch = store.read(samples, views)
        checked = store.read(samples, views, verify=True)
        there = store.available([i for _, i in pairs], [view for view, _ in pairs])
        plain = {tap.name: store.array(tap.name)[...] for tap in layout.taps}
    assert there.tolist() == [pair not in lost for pair in pairs]
    for tap in layout.taps:
        expected = [written(tap, view, i, layout) for view, i in zip(views, samples, strict=True)]
        assert batch[tap.name].shape == (len(samples), *tap.shape)
        assert batch[tap.name].dtype == getattr(torch, tap.dtype)
        assert bits(batch[tap.name]) == b"".join(map(bits, expected))
        assert bits(checked[tap.name]) == bits(batch[tap.name])
        for row, view, sample in zip(batch[tap.name], views, samples, strict=True):
            assert bits(row) == bits(plain[tap.name][view, sample])


@pytest.mark.parametrize("tap", TAPS, ids=lambda tap: tap.name)
def test_zarr_python_reads_the_same_bits(store: Store, tap: TapSpec) -> None:
    array = zarr.open_group(str(store.location), mode="r")[f"taps/{tap.name}"]
    assert array.shape == (3, 10, *tap.shape)
    for view, extent in enumerate(store.extents):
        for sample in range(extent):
            assert bits(array[view, sample]) == bits(written(tap, view, sample))
    assert bits(array[0]) == bits(store.read(range(10), 0, [tap.name])[tap.name])


@pytest.mark.parametrize("tap", TAPS, ids=lambda tap: tap.name)
def test_tensorstore_reads_the_same_bits(store: Store, tap: TapSpec) -> None:
    path = str(store.location / "taps" / tap.name)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}
    array = tensorstore.open(spec, read=True).result()
    assert array.domain.labels == ("view", "sample", *tap.axes)
    for view, extent in enumerate(store.extents):
        read = store.read(range(extent), view, [tap.name])[tap.name]
        assert bits(array[view, :extent].read().result()) == bits(read)


def test_zarr_python_walks_the_group_without_a_warning(store: Store) -> None:
    group = zarr.open_group(str(store.location), mode="r")
    names = {name for name, _ in group.members(max_depth=None)}
    columns = {"uid", "label", "split", "group", "view", "outcome", "receipt"}
    assert names == columns | {"taps"} | {f"taps/{tap.name}" for tap in TAPS}
    assert "layer4" in str(group.tree())


def test_xarray_opens_the_taps_with_named_dimensions(store: Store) -> None:
    taps = xarray.open_zarr(str(store.location), group="taps", consolidated=False)
    assert taps["layer4"].dims == ("view", "sample", "layer4_channel", "layer4_y", "layer4_x")
    assert taps["tokens"].dims == ("view", "sample", "tokens_token", "tokens_channel")
    assert taps["logits"].dims == ("view", "sample", "logits_class")
    assert taps.sizes["sample"] == 10
    values = taps["layer4"].isel(view=1, sample=[4, 2]).to_numpy()
    assert bits(values) == bits(store.read([4, 2], 1, ["layer4"])["layer4"])


def test_xarray_opens_the_columns(store: Store) -> None:
    columns = xarray.open_zarr(str(store.location), consolidated=False)
    assert columns["label"].dims == ("sample",)
    assert columns["label"].to_numpy().tolist() == store.labels.tolist()
    assert columns["outcome"].to_numpy().sum() == 10 + 6 + 6


def test_dask_has_one_chunk_a_shard(store: Store) -> None:
    lazy = store.dask("layer4")
    assert lazy.chunksize == (1, 4, 3, 2, 2)
    assert bits(lazy[0].compute()) == bits(store.read(range(10), 0, ["layer4"])["layer4"])


def test_the_columns_are_those_that_were_given(store: Store) -> None:
    table = sample_table(LAYOUT)
    assert store.uids.tolist() == list(table.uids)
    assert store.labels.tolist() == table.labels.tolist()
    assert store.splits.tolist() == list(table.splits)
    assert store.groups.tolist() == table.groups.tolist()
    assert store.view_columns == COLUMNS
    assert np.array_equal(store.view_parameters, view_parameters(LAYOUT))
    assert (store.samples, store.views, store.extents) == (10, 3, (10, 6, 6))
    assert store.taps == {tap.name: tap for tap in TAPS}
    assert store.nbytes == 22 * sum(tap.nbytes for tap in TAPS)


def test_the_manifest_is_plain_json_of_the_group_with_the_facts_in_it(
    build: Callable[..., Store],
) -> None:
    store = build(facts={"note": "ours", "schema": 99})
    document = json.loads((store.location / "zarr.json").read_text())
    assert document["node_type"] == "group"
    assert document["attributes"]["rdcache"] == store.manifest
    assert store.manifest["note"] == "ours"
    assert store.manifest["schema"] == 1
    assert store.complete


@pytest.mark.parametrize("view", [2, np.int64(2), np.array(2), np.array([2, 2])])
def test_one_view_number_serves_all_samples(store: Store, view: Any) -> None:
    one, each = store.read([5, 0], view, ["pooled"]), store.read([5, 0], [2, 2], ["pooled"])
    assert torch.equal(one["pooled"], each["pooled"])


def test_samples_may_be_repeated_and_come_in_the_order_asked_for(store: Store) -> None:
    batch = store.read([3, 9, 3], [1, 0, 0], ["pooled"])["pooled"]
    tap = store.taps["pooled"]
    expected = [written(tap, 1, 3), written(tap, 0, 9), written(tap, 0, 3)]
    assert bits(batch) == b"".join(map(bits, expected))


def test_a_batch_may_be_asked_for_by_tensors_and_arrays(store: Store) -> None:
    plain = store.read([1, 2], 0, ["pooled"])["pooled"]
    assert torch.equal(store.read(torch.tensor([1, 2]), 0, ["pooled"])["pooled"], plain)
    assert torch.equal(store.read(np.array([1, 2], np.uint8), 0, ["pooled"])["pooled"], plain)


def test_what_was_read_is_the_callers_own(store: Store) -> None:
    first = store.read([0], 0, ["pooled"])["pooled"]
    first.zero_()
    assert store.read([0], 0, ["pooled"])["pooled"].abs().sum() > 0


def test_an_empty_batch_is_empty(store: Store) -> None:
    assert store.read([], 0, ["layer4"])["layer4"].shape == (0, 3, 2, 2)


def test_a_view_that_was_not_extracted_is_refused_in_one_sentence(store: Store) -> None:
    with pytest.raises(UsageError) as caught:
        store.read([0, 7], [1, 1])
    assert caught.value.summary == (
        "sample 7 has no tensors for view 1: view 1 covers the first 6 samples only, "
        "and this one is of the val split."
    )


def test_a_sample_that_was_not_finite_is_refused_and_its_neighbours_are_read(
    build: Callable[..., Store],
) -> None:
    store = build(outcomes={(0, 2): 2})
    with pytest.raises(UsageError, match="sample 2 has no tensors for view 0: the teacher gave"):
        store.read([1, 2, 3], 0)
    assert store.available([1, 2, 3], 0).tolist() == [True, False, True]
    assert bits(store.read([3], 0)["pooled"]) == bits(written(store.taps["pooled"], 0, 3))
    assert not np.asarray(store.array("pooled")[0, 2]).any()


@pytest.mark.parametrize(
    ("samples", "views", "sentence"),
    [
        ([10], 0, "there is no sample 10"),
        ([-1], 0, "there is no sample -1"),
        ([0], 3, "there is no view 3"),
        ([0], -1, "there is no view -1"),
        ([0, 1, 2], [0, 0], "3 samples are asked for in 2 views"),
        ([0.5], 0, "whole numbers"),
    ],
)
def test_numbers_out_of_range_are_refused(
    store: Store, samples: list[int], views: int, sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        store.read(samples, views)


def test_a_tap_that_is_not_there_is_named_with_its_neighbours(store: Store) -> None:
    with pytest.raises(UnknownNameError, match="layer4"):
        store.read([0], 0, ["layer3"])
    with pytest.raises(UnknownNameError):
        store.array("layer3")
