from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdcache.data import ViewSpec, cut_volume, cut_volume_mask, view_columns, view_parameters
from rdcache.errors import UsageError

sides = st.integers(1, 14)
shapes = st.tuples(sides, sides, sides)


def some_values(shape: tuple[int, int, int], channels: int = 2) -> np.ndarray:
    random = np.random.default_rng(sum(shape))
    return random.standard_normal((channels, *shape)).astype(np.float32)


def view(
    box: tuple[float, ...], mirrors: tuple[int, ...] = (0, 0, 0), turns: int = 0
) -> np.ndarray:
    return np.array([*box, *mirrors, turns], np.float64)


def patches(shape: tuple[int, int, int], count: int, **options: object) -> np.ndarray:
    spec = ViewSpec("random", count, **options)  # type: ignore[arg-type]
    return view_parameters(spec, [f"uid of {shape}"], [shape])[:, 0]


@given(shapes, shapes, st.integers(1, 5))
def test_a_patch_has_exactly_its_size_and_lies_on_the_grid(
    shape: tuple[int, int, int], patch: tuple[int, int, int], stride: int
) -> None:
    boxes = patches(shape, 12, patch=patch, stride=stride)[:, :6]
    assert (boxes[:, 3:] - boxes[:, :3] == np.array(patch)).all()
    assert (boxes[:, :3] % stride == 0).all()


@given(shapes, shapes)
def test_a_patch_holds_voxels_of_its_volume_and_all_of_a_small_one(
    shape: tuple[int, int, int], patch: tuple[int, int, int]
) -> None:
    boxes = patches(shape, 20, patch=patch, stride=1)[:, :6]
    inside = np.minimum(boxes[:, 3:], shape) - np.maximum(boxes[:, :3], 0)
    assert (inside == np.minimum(shape, patch)).all()


def test_patches_reach_every_voxel_whatever_the_stride() -> None:
    reached = np.zeros((11, 10, 9), bool)
    for box in patches((11, 10, 9), 400, patch=(4, 4, 4), stride=4)[:, :6].astype(int):
        reached[tuple(slice(a, b) for a, b in zip(box[:3], box[3:], strict=True))] = True
    assert reached.all()


def test_view_0_is_the_patch_in_the_middle_or_the_whole_volume() -> None:
    assert patches((20, 30, 41), 2, patch=(10, 10, 10))[0].tolist() == [
        *(5, 10, 16, 15, 20, 26),
        *(0, 0, 0, 0),
    ]
    assert patches((20, 30, 41), 2)[0].tolist() == [*(0, 0, 0, 20, 30, 41), *(0, 0, 0, 0)]


@given(shapes)
def test_crops_lie_within_the_volume_and_have_the_part_that_was_asked_for(
    shape: tuple[int, int, int],
) -> None:
    boxes = patches(shape, 20, scale=(0.3, 0.6))[1:, :6]
    assert (boxes[:, :3] >= 0).all()
    assert (boxes[:, 3:] <= np.array(shape) + 1e-9).all()
    parts = (boxes[:, 3:] - boxes[:, :3]).prod(axis=1) / np.prod(shape)
    assert (parts > 0.3 - 1e-6).all()
    assert (parts < 0.6 + 1e-6).all()


@given(shapes, shapes, st.tuples(*[st.integers(-6, 14)] * 3))
def test_an_aligned_patch_is_a_copy_of_its_voxels(
    shape: tuple[int, int, int], size: tuple[int, int, int], corner: tuple[int, int, int]
) -> None:
    values = some_values(shape)
    fill = np.array([-7.0, 3.0], np.float32).reshape(2, 1, 1, 1)
    cut = cut_volume(values, view((*corner, *np.add(corner, size))), size, fill)
    for at in product(*map(range, size)):
        place = np.add(corner, at)
        inside = (place >= 0).all() and (place < shape).all()
        expected = values[(slice(None), *place)] if inside else fill[:, 0, 0, 0]
        assert (cut[(slice(None), *at)] == expected).all()


@given(shapes, st.tuples(*[st.integers(0, 1)] * 3))
def test_mirrored_twice_is_the_same(
    shape: tuple[int, int, int], mirrors: tuple[int, int, int]
) -> None:
    values = some_values(shape)
    parameters = view((0, 0, 0, *shape), mirrors)
    once = cut_volume(values, parameters, shape, 0.0)
    assert (cut_volume(once, parameters, shape, 0.0) == values).all()


@given(shapes, st.integers(0, 3))
def test_four_equal_turns_are_none(shape: tuple[int, int, int], turns: int) -> None:
    values = cut = some_values(shape)
    for _ in range(4):
        depth, height, width = cut.shape[1:]
        size = (depth, width, height) if turns % 2 else (depth, height, width)
        cut = cut_volume(cut, view((0, 0, 0, depth, height, width), turns=turns), size, 0.0)
    assert (cut == values).all()


@given(
    shapes,
    st.tuples(*[st.floats(-3, 6)] * 3),
    st.tuples(*[st.floats(0.5, 12)] * 3),
    st.tuples(*[st.integers(0, 1)] * 3),
    st.integers(0, 3),
)
def test_a_mask_is_cut_where_its_volume_is_cut(
    shape: tuple[int, int, int],
    corner: tuple[float, float, float],
    extent: tuple[float, float, float],
    mirrors: tuple[int, int, int],
    turns: int,
) -> None:
    """The x, y and z of each voxel, cut as a volume, lead to the mask's voxel."""
    mask = np.arange(np.prod(shape), dtype=np.uint32).reshape(shape)
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    far = tuple(np.add(corner, extent))
    # Upsampled twelvefold at least, so that the filter of the values does not widen.
    parameters, size = view((*corner, *far), mirrors, turns), (13, 12, 12)
    number = cut_volume_mask(mask, parameters, size)
    cut = cut_volume(places, parameters, size, 0.0)
    inside = cut_volume(np.ones((1, *shape), np.float32), parameters, size, 0.0)[0] > 0.9999
    found = np.stack(np.unravel_index(number, shape))
    assert (np.abs(cut - found)[:, inside] <= 0.5 + 2e-3).all()


def test_a_resized_view_averages_what_it_merges() -> None:
    values = some_values((8, 8, 8), channels=1)
    small = cut_volume(values, view((0, 0, 0, 8, 8, 8)), (4, 4, 4), 0.0)
    weights = np.zeros((4, 8))  # the triangle of width 2 around each centre, within the volume
    for row, column in product(range(4), range(8)):
        weights[row, column] = max(0.0, 1 - abs(column + 0.5 - 2 * (row + 0.5)) / 2)
    weights /= weights.sum(axis=1, keepdims=True)
    expected = np.einsum("ad,be,cf,def->abc", weights, weights, weights, values[0].astype(float))
    np.testing.assert_allclose(small[0], expected, atol=1e-5)


def test_a_constant_volume_stays_constant_when_it_is_resized() -> None:
    values = np.full((1, 5, 9, 7), 3.0, np.float32)
    np.testing.assert_allclose(
        cut_volume(values, view((0.3, 1.7, 0, 4.1, 9, 6.5)), (6, 4, 9), 0.0), 3.0, rtol=1e-6
    )


def test_views_of_volumes_do_not_depend_on_the_other_volumes() -> None:
    spec = ViewSpec("random", 5, symmetry="d4", patch=(4, 4, 4))
    both = view_parameters(spec, ["a", "b"], [(9, 9, 9), (12, 8, 7)])
    alone = view_parameters(spec, ["b"], [(12, 8, 7)])
    assert both.shape == (5, 2, len(view_columns(3)))
    assert (both[:, 1] == alone[:, 0]).all()


def test_symmetry_decides_what_a_random_view_may_do() -> None:
    columns = list(view_columns(3))
    for symmetry, mirrored, turns in (("none", 0, {0}), ("hflip", 1, {0}), ("d4", 1, {0, 1, 2, 3})):
        views = patches((9, 9, 9), 60, patch=(4, 4, 4), symmetry=symmetry)
        assert views[:, columns.index("mirror_x")].max() == mirrored
        assert views[:, columns.index("mirror_z")].max() == 0
        assert set(views[:, columns.index("quarter_turns")]) == turns


def test_oblong_slices_are_turned_by_halves_and_cannot_have_all_eight_symmetries() -> None:
    views = patches((9, 9, 9), 60, patch=(4, 4, 6), symmetry="d4")
    assert set(views[:, -1]) == {0, 2}
    with pytest.raises(UsageError, match="squares"):
        ViewSpec.parse("d4", patch=(4, 4, 6))


def test_the_facts_of_views_without_a_patch_are_what_they_were() -> None:
    assert set(ViewSpec.parse("8").to_dict()) == {
        *("kind", "count", "fit", "symmetry", "scale", "ratio", "version")
    }
    facts = ViewSpec.parse("8", patch=(8, 8, 8), stride=4).to_dict()
    assert facts["patch"] == [8, 8, 8]
    assert facts["stride"] == 4
