"""Views depend on uid, number and version alone, stay in the image, and are replayed exactly."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rdcache.data import VIEW_COLUMNS, ViewSpec, cut_view, view_parameters
from rdcache.errors import UsageError

LEFT, TOP, RIGHT, BOTTOM, MIRROR, TURNS = range(6)
uids = st.binary(min_size=16, max_size=16).map(bytes.hex)
sides = st.integers(8, 3000)
symmetries = st.sampled_from(["none", "hflip", "d4"])
interpolations = pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def whole(mirror: int = 0, quarter_turns: int = 0) -> np.ndarray:
    return np.array([0.0, 0.0, 1.0, 1.0, mirror, quarter_turns])


def test_columns_are_what_stores_call_them() -> None:
    assert VIEW_COLUMNS == ("left", "top", "right", "bottom", "mirror", "quarter_turns")


@pytest.mark.parametrize(
    ("text", "kind", "count"),
    [
        ("clean", "clean", 1),
        ("1", "clean", 1),
        ("flip", "flip", 2),
        ("d4", "d4", 8),
        ("16", "random", 16),
        ("1000", "random", 1000),
    ],
)
def test_the_number_of_views_counts_the_clean_one(text: str, kind: str, count: int) -> None:
    spec = ViewSpec.parse(text, symmetry="d4", fit="center")
    assert (spec.kind, spec.count, spec.symmetry, spec.fit) == (kind, count, "d4", "center")
    assert json.loads(json.dumps(spec.to_dict())) == spec.to_dict()


@pytest.mark.parametrize("text", ["0", "-3", "mirror", "", "2.5", "1001", "9" * 5000])
def test_other_words_are_refused_with_the_choices(text: str) -> None:
    with pytest.raises(UsageError, match="clean, flip, d4"):
        ViewSpec.parse(text)


@settings(max_examples=60, deadline=None)
@given(
    uids=st.lists(uids, min_size=1, max_size=5, unique=True), symmetry=symmetries, data=st.data()
)
def test_parameters_depend_on_uid_and_view_alone(
    uids: list[str], symmetry: str, data: st.DataObject
) -> None:
    sizes = [(data.draw(sides), data.draw(sides)) for _ in uids]
    few = view_parameters(ViewSpec.parse("3", symmetry), uids, sizes)
    many = view_parameters(ViewSpec.parse("6", symmetry), uids[::-1], sizes[::-1])
    np.testing.assert_array_equal(few, many[:3, ::-1])


def test_another_process_draws_the_same_numbers_and_other_uids_others() -> None:
    uids, sizes = ["00" * 16, "5a" * 16], [(640, 480), (200, 300)]
    program = (
        "from rdcache.data import ViewSpec, view_parameters\n"
        f"p = view_parameters(ViewSpec.parse('4', 'd4'), {uids}, {sizes})\n"
        "print(p.tobytes().hex())"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    here = view_parameters(ViewSpec.parse("4", "d4"), uids, sizes)
    assert other.stdout.strip() == here.tobytes().hex()
    assert len(np.unique(here[1:, :, LEFT])) == 6


def test_the_numbers_of_version_1_never_change() -> None:
    box = view_parameters(ViewSpec.parse("2", "d4"), ["00" * 16], [(640, 480)])[1, 0]
    expected = [0.1997728497959488, 0.04409064585142295, 0.8884174832320013, 0.8028430370122377]
    np.testing.assert_allclose(box, [*expected, 0, 2], rtol=1e-12)


def test_another_version_draws_other_crops() -> None:
    spec = ViewSpec.parse("2")
    one = view_parameters(spec, ["00" * 16], [(640, 480)])
    two = view_parameters(ViewSpec(**{**spec.__dict__, "version": 2}), ["00" * 16], [(640, 480)])
    np.testing.assert_array_equal(one[0], two[0])
    assert not np.array_equal(one[1], two[1])


@settings(max_examples=200, deadline=None)
@given(uid=uids, width=sides, height=sides, symmetry=symmetries)
def test_crops_stay_inside_and_keep_to_scale_and_ratio_in_pixels(
    uid: str, width: int, height: int, symmetry: str
) -> None:
    spec = ViewSpec.parse("6", symmetry)
    rows = view_parameters(spec, [uid], [(width, height)])[1:, 0]
    assert (rows[:, :4] >= 0).all()
    assert (rows[:, :4] <= 1).all()
    across = (rows[:, RIGHT] - rows[:, LEFT]) * width
    down = (rows[:, BOTTOM] - rows[:, TOP]) * height
    assert (across > 0).all()
    assert (down > 0).all()
    slack = 1e-9
    assert (across / down >= 3 / 4 - slack).all()
    assert (across / down <= 4 / 3 + slack).all()
    area = across * down / (width * height)
    # A very long image has no crop of half its area at such a ratio: then the largest there is.
    largest = min(1.0, 4 / 3 * height / width, 4 / 3 * width / height)
    assert (area >= min(0.5, largest) - slack).all()
    assert (area <= largest + slack).all()
    assert set(rows[:, MIRROR]) <= ({0} if symmetry == "none" else {0, 1})
    assert set(rows[:, TURNS]) <= ({0, 1, 2, 3} if symmetry == "d4" else {0})


def test_crops_use_all_scales_ratios_and_symmetries() -> None:
    spec = ViewSpec.parse("400", "d4")
    rows = view_parameters(spec, ["ab" * 16], [(256, 256)])[1:, 0]
    across, down = rows[:, RIGHT] - rows[:, LEFT], rows[:, BOTTOM] - rows[:, TOP]
    area, ratio = across * down, across / down
    assert area.min() < 0.52
    assert area.max() > 0.95
    assert abs(np.log(ratio).mean()) < 0.05
    assert math.isclose(rows[:, MIRROR].mean(), 0.5, abs_tol=0.1)
    assert np.bincount(rows[:, TURNS].astype(int)).min() > 70


@settings(max_examples=60, deadline=None)
@given(uid=uids, width=sides, height=sides, kind=st.sampled_from(["clean", "flip", "d4", "5"]))
def test_view_0_is_clean_whatever_the_others_are(
    uid: str, width: int, height: int, kind: str
) -> None:
    squash = view_parameters(ViewSpec.parse(kind), [uid], [(width, height)])[0, 0]
    np.testing.assert_array_equal(squash, whole())
    centre = view_parameters(ViewSpec.parse(kind, fit="center"), [uid], [(width, height)])[0, 0]
    across, down = (centre[RIGHT] - centre[LEFT]) * width, (centre[BOTTOM] - centre[TOP]) * height
    assert math.isclose(across, min(width, height))
    assert math.isclose(down, min(width, height))
    assert math.isclose(centre[LEFT], 1 - centre[RIGHT], abs_tol=1e-12)
    assert math.isclose(centre[TOP], 1 - centre[BOTTOM], abs_tol=1e-12)


def test_flip_is_the_mirrored_clean_view() -> None:
    parameters = view_parameters(ViewSpec.parse("flip"), ["00" * 16], [(90, 60)])[:, 0]
    image = noise(60, 90)
    clean, flipped = (cut_view(image, row, 32) for row in parameters)
    np.testing.assert_array_equal(flipped, clean[:, ::-1])


@interpolations
def test_d4_views_are_the_eight_symmetries_of_the_resized_image(interpolation: str) -> None:
    image = noise(60, 60)
    parameters = view_parameters(ViewSpec.parse("d4"), ["00" * 16], [(60, 60)])[:, 0]
    resized = np.asarray(
        Image.fromarray(image).resize((32, 32), Image.Resampling[interpolation.upper()])
    )
    expected = [
        np.rot90(side, turns) for side in (resized, np.fliplr(resized)) for turns in range(4)
    ]
    cut = [cut_view(image, row, 32, interpolation) for row in parameters]  # type: ignore[arg-type]
    np.testing.assert_array_equal(cut, expected)
    assert len({view.tobytes() for view in cut}) == 8


@interpolations
def test_the_whole_box_at_the_images_own_size_is_the_image(interpolation: str) -> None:
    image = noise(24, 24)
    np.testing.assert_array_equal(cut_view(image, whole(), 24, interpolation), image)  # type: ignore[arg-type]


def test_an_image_is_mirrored_first_and_turned_counter_clockwise_after() -> None:
    image = np.zeros((8, 8, 3), np.uint8)
    image[:4, :4] = 255  # marked at the top left

    def marked_corner(mirror: int, turns: int) -> tuple[int, int]:
        cut = cut_view(image, whole(mirror, turns), 8)
        assert cut.flags.c_contiguous
        row, column = np.argwhere(cut[..., 0] > 200).mean(axis=0)
        return int(row > 4), int(column > 4)

    assert [marked_corner(0, turns) for turns in range(4)] == [(0, 0), (1, 0), (1, 1), (0, 1)]
    assert [marked_corner(1, turns) for turns in range(4)] == [(0, 1), (0, 0), (1, 0), (1, 1)]


def test_the_box_is_in_fractions_of_width_and_height() -> None:
    image = noise(40, 80)
    box = np.array([0.25, 0.5, 0.5, 1.0, 0, 0])
    np.testing.assert_array_equal(cut_view(image, box, 20), image[20:40, 20:40])


@settings(max_examples=60, deadline=None)
@given(uid=uids, width=st.integers(1, 200), height=st.integers(1, 200), size=st.integers(1, 48))
def test_every_view_of_every_image_can_be_cut(uid: str, width: int, height: int, size: int) -> None:
    image = np.full((height, width, 3), 77, np.uint8)
    for row in view_parameters(ViewSpec.parse("4", "d4"), [uid], [(width, height)])[:, 0]:
        np.testing.assert_array_equal(cut_view(image, row, size), np.full((size, size, 3), 77))
