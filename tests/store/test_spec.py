"""Layouts, fingerprints and taps as facts, for whatever numbers they are given."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdcache.errors import StoreFormatError
from rdcache.store import Fingerprint, StoreLayout, TapSpec

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)  # fmt: skip
PARTS = st.dictionaries(st.text(max_size=5), JSON, max_size=5)
TAPS = st.lists(st.integers(1, 5000), min_size=1, max_size=3).map(
    lambda widths: tuple(TapSpec(f"t{i}", "vector", (width,)) for i, width in enumerate(widths))
)
EXTENTS = st.integers(1, 500).flatmap(
    lambda samples: st.lists(st.integers(0, samples), max_size=3).map(lambda rest: (samples, *rest))
)


def reordered(value: Any) -> Any:
    """Equal JSON whose keys come in the opposite order."""
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(value)}
    return [reordered(each) for each in value] if isinstance(value, list) else value


@given(taps=TAPS, extents=EXTENTS, target=st.integers(1, 10**6))
def test_planned_shards_partition_what_each_view_covers(
    taps: tuple[TapSpec, ...], extents: tuple[int, ...], target: int
) -> None:
    layout = StoreLayout.plan(taps, extents, target)
    shards = layout.shards()
    for view, extent in enumerate(extents):
        own = [shard for shard in shards if shard.view == view]
        assert [i for shard in own for i in range(shard.start, shard.stop)] == list(range(extent))
        assert [shard.index for shard in own] == list(range(len(own)))
    for shard in shards:
        assert shard.start == shard.index * layout.shard_samples
        assert 0 < shard.stop - shard.start <= layout.shard_samples
        assert shard.index < layout.shards_per_view
    assert [shard.view for shard in shards] == sorted(shard.view for shard in shards)


@given(taps=TAPS, extents=EXTENTS, target=st.integers(1, 10**6))
def test_a_planned_shard_is_the_largest_power_of_two_that_fits_and_is_needed(
    taps: tuple[TapSpec, ...], extents: tuple[int, ...], target: int
) -> None:
    layout = StoreLayout.plan(taps, extents, target)
    size, largest = layout.shard_samples, max(tap.nbytes for tap in taps)
    assert size.bit_count() == 1
    assert size == 1 or size * largest <= target
    assert 2 * size * largest > target or size >= layout.samples
    assert size == 1 or size // 2 < layout.samples


@given(parts=PARTS)
def test_the_digest_does_not_depend_on_the_order_of_keys_nor_on_a_way_through_json(
    parts: dict[str, Any],
) -> None:
    fingerprint = Fingerprint(parts)
    for other in (reordered(parts), json.loads(json.dumps(parts))):
        assert Fingerprint(other).digest == fingerprint.digest
        assert fingerprint.differences(Fingerprint(other)) == ()


@given(one=PARTS, two=PARTS)
def test_fingerprints_differ_exactly_when_a_part_does(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    differing = {
        name for name in one.keys() | two.keys() if canonical(one, name) != canonical(two, name)
    }
    assert set(Fingerprint(one).differences(Fingerprint(two))) == differing
    assert (Fingerprint(one) == Fingerprint(two)) == (not differing)


def canonical(parts: dict[str, Any], name: str) -> str | None:
    """A part as text, which tells 1 from 1.0 and True; None, not `null`, where there is none."""
    return json.dumps(parts[name], sort_keys=True) if name in parts else None


@given(name=st.text(max_size=8) | st.from_regex(r"[a-z./\\]{1,8}", fullmatch=True))
def test_a_tap_name_is_one_plain_folder_name_or_is_refused(name: str) -> None:
    try:
        tap = TapSpec(name, "vector", (1,))
    except StoreFormatError:
        return
    assert tap.name.isascii()
    assert not set(tap.name) & set("/\\:\0 \n")
    assert tap.name[0].isalnum()


@pytest.mark.parametrize("name", ["zarr.json", "", ".", "..", "a/b", "a\\b", "a\n", "C:", "~"])
def test_a_tap_name_that_is_no_folder_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(StoreFormatError):
        TapSpec(name, "vector", (1,))


def test_a_tap_survives_json() -> None:
    tap = TapSpec("volume", "map3d", (8, 4, 2, 2), "bfloat16")
    assert TapSpec.from_dict(json.loads(json.dumps(tap.to_dict()))) == tap
    assert tap.nbytes == 2 * 8 * 4 * 2 * 2
    assert tap.axes == ("volume_channel", "volume_z", "volume_y", "volume_x")
