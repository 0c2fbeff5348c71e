"""A mask is cut exactly where its image is cut, and holds nothing but its own class numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rdcache.data import cut_mask, cut_view

symmetries = st.tuples(st.integers(0, 1), st.integers(0, 3))
fractions = st.floats(0, 1)
TRANSPOSITIONS = [None, *(getattr(Image.Transpose, f"ROTATE_{turn}") for turn in (90, 180, 270))]


@st.composite
def boxes(draw: st.DrawFn) -> tuple[float, float, float, float]:
    """left, top, right, bottom: at least a tenth of the image each way."""
    across, down = draw(st.floats(0.1, 1)), draw(st.floats(0.1, 1))
    left, top = draw(fractions) * (1 - across), draw(fractions) * (1 - down)
    return left, top, left + across, top + down


def mask_of(height: int, width: int, classes: int = 5) -> np.ndarray:
    return np.random.default_rng(0).integers(0, classes, (height, width), np.uint8)


def symmetry(mirror: int, turns: int) -> np.ndarray:
    return np.array([0.0, 0.0, 1.0, 1.0, mirror, turns])


@settings(max_examples=100, deadline=None)
@given(
    box=boxes(),
    symmetry=symmetries,
    height=st.integers(4, 60),
    width=st.integers(4, 60),
    size=st.integers(1, 40),
)
def test_each_pixel_is_the_class_at_its_centre(
    box: tuple[float, ...], symmetry: tuple[int, int], height: int, width: int, size: int
) -> None:
    mask = mask_of(height, width)
    cut = cut_mask(mask, np.array([*box, *symmetry]), size)
    mirror, turns = symmetry
    upright = np.rot90(cut, -turns)
    upright = upright[:, ::-1] if mirror else upright
    left, top, right, bottom = box
    for row in range(size):
        for column in range(size):
            y = (top + (row + 0.5) / size * (bottom - top)) * height
            x = (left + (column + 0.5) / size * (right - left)) * width
            # Within rounding of an edge either side is right.
            near = {
                int(mask[min(int(y + dy), height - 1), min(int(x + dx), width - 1)])
                for dy in (-1e-9, 1e-9)
                for dx in (-1e-9, 1e-9)
            }
            assert int(upright[row, column]) in near


@settings(max_examples=60, deadline=None)
@given(box=boxes(), mirror=st.integers(0, 1), turns=st.integers(0, 3), seed=st.integers(0, 99))
def test_it_is_cut_where_its_image_is_cut(
    box: tuple[float, ...], mirror: int, turns: int, seed: int
) -> None:
    """A picture of the mask, cut as an image and divided at half, is the mask's cut."""
    coarse = np.random.default_rng(seed).integers(0, 2, (4, 5), np.uint8)
    mask = np.kron(coarse, np.ones((20, 20), np.uint8))
    picture = np.repeat(mask[..., None] * 255, 3, axis=2)
    parameters = np.array([*box, mirror, turns])
    of_picture = cut_view(picture, parameters, 48)[..., 0] > 127
    # Corners of blocks are rounded in a picture; everything else falls on the same pixels.
    assert (of_picture != cut_mask(mask, parameters, 48)).mean() < 0.03


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("mirror", [0, 1])
def test_whole_pixels_move_as_pillow_moves_those_of_the_image(mirror: int, turns: int) -> None:
    mask = mask_of(24, 24)
    expected = Image.fromarray(mask)
    if mirror:
        expected = expected.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if TRANSPOSITIONS[turns] is not None:
        expected = expected.transpose(TRANSPOSITIONS[turns])
    cut = cut_mask(mask, symmetry(mirror, turns), 24)
    np.testing.assert_array_equal(cut, np.asarray(expected))
    image = np.repeat(mask[..., None], 3, axis=2)
    np.testing.assert_array_equal(cut, cut_view(image, symmetry(mirror, turns), 24)[..., 0])


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 30), turns=st.integers(0, 3))
def test_symmetries_are_undone_by_their_inverses(size: int, turns: int) -> None:
    mask = mask_of(size, size)
    turned = cut_mask(mask, symmetry(0, turns), size)
    np.testing.assert_array_equal(cut_mask(turned, symmetry(0, 4 - turns), size), mask)
    mirrored = cut_mask(mask, symmetry(1, turns), size)  # a reflection is its own inverse
    np.testing.assert_array_equal(cut_mask(mirrored, symmetry(1, turns), size), mask)


def test_no_class_is_invented_between_two_others() -> None:
    mask = np.zeros((31, 37), np.uint8)
    mask[10:20, 12:30] = 200
    for size in (7, 16, 90):
        cut = cut_mask(mask, np.array([0.1, 0.05, 0.83, 0.91, 1, 3]), size)
        assert cut.dtype == np.uint8
        assert cut.shape == (size, size)
        assert set(np.unique(cut)) == {0, 200}
