"""Volumes at another spacing, and what was computed there back on the grid of the file.

A resampled volume has the wanted spacing exactly, as many voxels as come nearest to its old extent,
and the same centre. Between voxels values are linear, as in SimpleITK and MONAI without smoothing;
beyond the outermost voxels' centres they are those of the nearest one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from rdcache.data.volumes import Shape, Spacing, Volume
from rdcache.errors import UsageError

MOST_VOXELS = 2**31  # a spacing that makes more of a volume is a slip of the keyboard


def resampled_shape(shape: Shape, spacing: Spacing, wanted: Spacing | None) -> Shape:
    """Voxels along z, y, x once a volume of this shape and spacing has the wanted spacing.

    Raises:
        UsageError: these are too many.
    """
    if wanted is None:
        return shape
    sides = [max(1, round(n * s / w)) for n, s, w in zip(shape, spacing, wanted, strict=True)]
    if np.prod(sides, dtype=float) > MOST_VOXELS:
        raise UsageError(
            f"at a spacing of {_times(wanted)} mm a volume of {_times(shape)} voxels would have "
            f"{_times(sides)}.",
            its_own_spacing=f"{_times(spacing)} mm",
            next="choose a larger one, or leave it out to take volumes as they are",
        )
    return sides[0], sides[1], sides[2]


def resampled(volume: Volume, wanted: Spacing | None) -> Volume:
    """The volume at another spacing, or itself where that is its own or none is wanted."""
    if wanted is None or tuple(wanted) == volume.spacing:
        return volume
    shape = resampled_shape(volume.shape, volume.spacing, wanted)
    places = _places(volume.shape, volume.spacing, shape, wanted)
    first = np.array([axis[0] for axis in places[::-1]])  # x, y, z of the new first voxel
    steps = np.array([w / s for w, s in zip(wanted, volume.spacing, strict=True)][::-1])
    affine = volume.affine.copy()
    affine[:3, 3] += volume.affine[:3, :3] @ first
    affine[:3, :3] *= steps
    values = linear(volume.values, places)
    return replace(volume, values=values, spacing=wanted, affine=affine, original=volume.grid)


def resampled_mask(mask: np.ndarray, spacing: Spacing, wanted: Spacing | None) -> np.ndarray:
    """A mask (D, H, W) at another spacing: each voxel has the class of the nearest one."""
    if wanted is None or tuple(wanted) == spacing:
        return mask
    depth, height, width = mask.shape
    shape = resampled_shape((depth, height, width), spacing, wanted)
    places = _places((depth, height, width), spacing, shape, wanted)
    nearest = [
        np.clip(np.floor(axis + 0.5).astype(np.int64), 0, side - 1)
        for axis, side in zip(places, mask.shape, strict=True)
    ]
    return np.ascontiguousarray(mask[np.ix_(*nearest)])


def linear(values: np.ndarray, places: Sequence[np.ndarray]) -> np.ndarray:
    """Values between voxels, along one axis after the other.

    Args:
        values: float32 (…, D, H, W).
        places: for each of the last three axes the positions that are wanted, in voxels.

    Returns:
        float32 (…, D', H', W').
    """
    # The axis that shrinks the most comes first: what follows has less to do.
    order = sorted(range(3), key=lambda axis: len(places[axis]) / values.shape[axis - 3])
    for axis in order:
        values = _linear_along(values, axis - 3, places[axis])
    return np.ascontiguousarray(values)


def labels_at_original_spacing(scores: np.ndarray, volume: Volume) -> np.ndarray:
    """The class of each voxel of the file: the largest of the classes' scores in between.

    Args:
        scores: float32 (classes, D, H, W) on the volume's grid: probabilities, or logits.

    Returns:
        uint8 (D', H', W'), along z, y, x as ever, with the voxels of `volume.grid`.
    """
    shape, spacing = volume.grid.turned
    places = (
        None
        if volume.original is None or spacing == volume.spacing
        else _places(volume.shape, volume.spacing, shape, spacing)
    )
    best: np.ndarray | None = None
    labels = np.zeros(shape, np.uint8)
    for number, score in enumerate(scores):  # one by one: a CT of 14 classes takes gigabytes
        here = np.asarray(score, np.float32)
        here = here if places is None else linear(here, places)
        if best is None:
            best = here.copy()
        else:
            labels[here > best] = number
            np.maximum(best, here, out=best)
    return labels


def _places(old: Shape, spacing: Spacing, new: Shape, wanted: Spacing) -> list[np.ndarray]:
    """Where the new voxels lie among the old ones, along each axis."""
    return [
        (before - 1) / 2 + (np.arange(after) - (after - 1) / 2) * (w / s)
        for before, after, s, w in zip(old, new, spacing, wanted, strict=True)
    ]


def _linear_along(values: np.ndarray, axis: int, places: np.ndarray) -> np.ndarray:
    side = values.shape[axis]
    if len(places) == side and np.array_equal(places, np.arange(side)):
        return values
    inside = np.clip(places, 0, side - 1)
    before = np.minimum(np.floor(inside).astype(np.int64), max(side - 2, 0))
    after = np.minimum(before + 1, side - 1)
    column = [1] * values.ndim
    column[axis] = len(places)
    share = (inside - before).astype(np.float32).reshape(column)
    low = values.take(before, axis)
    between = values.take(after, axis)
    between -= low
    between *= share
    between += low
    return between


def _times(numbers: Sequence[float]) -> str:
    return " × ".join(f"{number:g}" for number in numbers)
