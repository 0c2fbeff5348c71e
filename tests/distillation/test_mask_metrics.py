"""Scores of masks against MONAI, against definitions in float64, and where masks are empty."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from rdcache.distillation.mask_metrics import (
    MaskScores,
    case_scores,
    class_scores,
    overlaps,
    surface_distances,
)
from rdcache.distillation.segmentation_metrics import mean_interval, segmentation_metrics

SPACINGS = {2: (1.5, 0.5), 3: (3.0, 1.0, 0.75)}


def blobs(seed: int, shape: tuple[int, ...], shift: int = 0) -> np.ndarray:
    """Class numbers 0, 1, 2 of smooth shapes; some touch the border."""
    field = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    field = np.roll(field, shift, axis=-1)
    return np.digitize(field, np.quantile(field, [0.75, 0.9])).astype(np.uint8)


@pytest.mark.filterwarnings("ignore::FutureWarning:monai")  # MONAI's own, of its own argument
@pytest.mark.parametrize("shape", [(31, 24), (9, 20, 17)], ids=["2d", "3d"])
def test_scores_are_those_of_monai(shape: tuple[int, ...]) -> None:
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice
    from monai.metrics.meandice import compute_dice
    from monai.metrics.meaniou import compute_iou

    spacing, tolerance = SPACINGS[len(shape)], 1.6
    predicted, truth = blobs(1, shape), blobs(1, shape, shift=3)
    scores = case_scores(predicted, truth, 3, spacing, tolerance)

    def one_hot(mask: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([mask == number for number in range(3)])[None])

    own, other = one_hot(predicted), one_hot(truth)
    without = {"include_background": False}
    assert scores.dice == pytest.approx(compute_dice(own, other, **without)[0].numpy())
    assert scores.iou == pytest.approx(compute_iou(own, other, **without)[0].numpy())
    distance = compute_hausdorff_distance(own, other, percentile=95, spacing=spacing, **without)
    assert scores.hd95 == pytest.approx(distance[0].numpy())
    near = compute_surface_dice(own, other, [tolerance] * 2, spacing=spacing, **without)
    assert scores.nsd == pytest.approx(near[0].numpy())


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), shift=st.integers(0, 4), deep=st.booleans())
def test_surface_distances_are_those_of_all_pairs(seed: int, shift: int, deep: bool) -> None:
    shape = (4, 8, 7) if deep else (10, 9)
    spacing = np.array(SPACINGS[len(shape)])
    one, other = blobs(seed, shape) > 0, blobs(seed + 1, shape, shift) > 0

    def surface(mask: np.ndarray) -> np.ndarray:
        """Elements with a neighbour outside of the mask, or of the image."""
        padded = np.pad(mask, 1)
        inside = np.ones_like(mask)
        for axis in range(mask.ndim):
            for step in (-1, 1):
                rolled = np.roll(padded, step, axis)
                inside &= rolled[tuple(slice(1, -1) for _ in mask.shape)]
        return np.argwhere(mask & ~inside) * spacing

    own, theirs = surface(one), surface(other)
    pairs = np.sqrt(((own[:, None] - theirs[None]) ** 2).sum(axis=2))
    there, back = surface_distances(one, other, spacing.tolist())
    assert np.sort(there) == pytest.approx(np.sort(pairs.min(axis=1)))
    assert np.sort(back) == pytest.approx(np.sort(pairs.min(axis=0)))


def test_a_shifted_square_by_hand() -> None:
    truth, predicted = np.zeros((12, 12), bool), np.zeros((12, 12), bool)
    truth[2:6, 2:6], predicted[2:6, 4:8] = True, True
    scores = class_scores(predicted, truth, (1.0, 0.5), 0.5)
    assert scores.dice == pytest.approx(0.5)
    assert scores.iou == pytest.approx(1 / 3)
    assert scores.hd95 == pytest.approx(1.0)  # two columns of half a millimetre
    assert scores.volume_error == 0
    # Of each surface of 12 elements: three in either outer row, and the inner column's other two.
    assert scores.nsd == pytest.approx(8 / 12)


def test_the_policy_for_empty_masks() -> None:
    nothing, something = np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    something[2:4, 2:4] = True
    both = class_scores(nothing, nothing, (1, 1), 1)
    assert (both.dice, both.iou, both.nsd, both.hd95, both.volume_error) == (1, 1, 1, 0, 0)
    missed = class_scores(nothing, something, (1, 1), 1)
    assert (missed.dice, missed.iou, missed.nsd, missed.volume_error) == (0, 0, 0, 1)
    assert np.isnan(missed.hd95)
    invented = class_scores(something, nothing, (1, 1), 1)
    assert (invented.dice, invented.iou, invented.nsd) == (0, 0, 0)
    assert np.isnan(invented.hd95)
    assert np.isnan(invented.volume_error)


def test_masks_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="other shapes"):
        case_scores(np.zeros((3, 3), np.uint8), np.zeros((3, 4), np.uint8), 2, (1, 1), 1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), classes=st.integers(2, 5))
def test_quick_overlaps_are_the_scores_own(seed: int, classes: int) -> None:
    random = np.random.default_rng(seed)
    predicted, truth = random.integers(0, classes, (2, 5, 6), dtype=np.uint8)
    predicted[truth == classes - 1] = 0  # a class that is missed
    dice, iou = overlaps(predicted, truth, classes)
    scores = case_scores(predicted, truth, classes, (1, 1), 1)
    assert dice == pytest.approx(scores.dice)
    assert iou == pytest.approx(scores.iou)


def scored(*dice: float, hd95: float = 1.0) -> MaskScores:
    values = np.array(dice)
    filled = np.full(len(dice), hd95)
    return MaskScores(values, values / 2, filled, values, np.full(len(dice), np.nan))


def test_means_leave_out_what_is_not_defined_and_count_it() -> None:
    cases = [scored(1.0, 0.0), scored(0.5, 0.2, hd95=np.nan), scored(0.0, 1.0, hd95=3.0)]
    present = np.array([[True, True], [True, False], [False, False]])
    metrics = segmentation_metrics(cases, present, ("background", "a", "b"), "px", 2.0)
    assert metrics["n"] == 3
    assert metrics["dice"] == pytest.approx((0.5 + 0.4) / 2)
    assert metrics["hd95"] == pytest.approx(2.0)
    assert (metrics["hd95_undefined"], metrics["volume_error_undefined"]) == (2, 6)
    assert metrics["volume_error"] is None
    assert metrics["of_class"]["a"]["dice_present"] == pytest.approx(0.75)
    assert metrics["dice_present"] == pytest.approx((0.75 + 0.0) / 2)
    assert metrics["empty_truth"] == 1
    low, high = metrics["dice_ci95"]
    assert low <= metrics["dice"] <= high


def test_the_interval_of_a_mean_is_about_two_standard_errors_wide() -> None:
    values = np.random.default_rng(0).normal(0.8, 0.1, 100)
    low, high = mean_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 10, rel=0.1)
    assert mean_interval(values) == (low, high)
