"""Views of volumes: boxes, mirrorings and quarter turns within slices, kept as numbers.

With a patch, every box has exactly its size and its corner on the stride's grid: teacher and
student then cut the same voxels, and none is resampled. Without one, view 0 is the whole volume,
the others are crops, and all are resized to what is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rdcache.data.volumes import Shape

if TYPE_CHECKING:
    from rdcache.data.views import ViewSpec

# The box in voxels of the volume, which it may leave: first and last place along z, y and x. It is
# resized, then mirrored along the axes that say so, then turned within its slices, from y to x as
# pictures are turned counter-clockwise, `quarter_turns` times.
VOLUME_VIEW_COLUMNS = (
    "front",
    "top",
    "left",
    "back",
    "bottom",
    "right",
    "mirror_z",
    "mirror_y",
    "mirror_x",
    "quarter_turns",
)
TRIES = 10


def one_volume_view(
    spec: ViewSpec, random: np.random.Generator, view: int, shape: Shape
) -> tuple[float, ...]:
    """Parameters of one view of one volume, columns `VOLUME_VIEW_COLUMNS`.

    Args:
        random: of this volume and view alone.
        shape: voxels along z, y, x.
    """
    drawn = spec.kind == "random" and view > 0
    if spec.patch is not None:
        corner: tuple[int, ...] = (
            _drawn_corner(random, shape, spec.patch, spec.stride)
            if drawn
            else _central_corner(shape, spec.patch, spec.stride)
        )
        box: tuple[float, ...] = (
            *corner,
            *(c + p for c, p in zip(corner, spec.patch, strict=True)),
        )
    else:
        box = _drawn_box(random, spec, shape) if drawn else (0, 0, 0, *shape)
    if view == 0:
        return (*box, 0, 0, 0, 0)
    if spec.kind == "flip":
        return (*box, 0, 0, 1, 0)
    # A patch that is no square within its slices fits only half a turn.
    step = 1 if spec.patch is None or spec.patch[1] == spec.patch[2] else 2
    if spec.kind == "d4":
        return (*box, 0, 0, view // 4, view % 4 * step)
    mirror = int(random.integers(2)) if spec.symmetry != "none" else 0
    turns = int(random.integers(4 // step)) * step if spec.symmetry == "d4" else 0
    return (*box, 0, 0, mirror, turns)


def cut_volume(
    values: np.ndarray, parameters: np.ndarray, size: Shape, fill: np.ndarray | float
) -> np.ndarray:
    """Cut one view out of a volume: box, resize with antialiasing, mirror, turn.

    A box of whole voxels, as large as the result, is copied bit by bit.

    Args:
        values: float32 (C, D, H, W).
        parameters: (10,), columns `VOLUME_VIEW_COLUMNS`.
        size: voxels of the result along z, y, x.
        fill: what lies outside: (C, 1, 1, 1) or one number; of a `Volume`, its `low`.

    Returns:
        float32 (C, *size).
    """
    low, high, mirrors, turns = _read(parameters)
    before = _before_turns(size, turns)
    if _is_copy(low, high, before):
        cut = _copied(values, low.astype(np.int64), before, fill)
    else:
        cut = _resized(values, low, high, before, fill)
    return np.ascontiguousarray(_turned(cut, mirrors, turns), np.float32)


def cut_volume_mask(mask: np.ndarray, parameters: np.ndarray, size: Shape) -> np.ndarray:
    """Cut one view out of a mask as `cut_volume` does, each voxel of the nearest one's class.

    Args:
        mask: uint8 (D, H, W); what lies outside is background, 0.

    Returns:
        uint8 (*size).
    """
    low, high, mirrors, turns = _read(parameters)
    before = _before_turns(size, turns)
    places = [
        np.floor(a + (np.arange(n) + 0.5) * ((b - a) / n)).astype(np.int64)
        for a, b, n in zip(low.tolist(), high.tolist(), before, strict=True)
    ]
    inside = [(p >= 0) & (p < side) for p, side in zip(places, mask.shape, strict=True)]
    nearest = [np.clip(p, 0, side - 1) for p, side in zip(places, mask.shape, strict=True)]
    cut = np.where(_all_of(inside), mask[np.ix_(*nearest)], mask.dtype.type(0))
    return np.ascontiguousarray(_turned(cut, mirrors, turns))


def _central_corner(shape: Shape, patch: Shape, stride: int) -> tuple[int, ...]:
    return tuple(round((n - p) / 2 / stride) * stride for n, p in zip(shape, patch, strict=True))


def _drawn_corner(
    random: np.random.Generator, shape: Shape, patch: Shape, stride: int
) -> tuple[int, ...]:
    """A place on the grid from where the patch lies within the volume, or around all of it.

    The last place along an axis may have the patch stick out, so that no voxel is never seen.
    """
    corner = []
    for n, p in zip(shape, patch, strict=True):
        first = math.ceil(min(0, n - p) / stride)
        last = math.ceil(max(0, n - p) / stride)
        corner.append(int(random.integers(first, last + 1)) * stride)
    return tuple(corner)


def _drawn_box(random: np.random.Generator, spec: ViewSpec, shape: Shape) -> tuple[float, ...]:
    """A crop of random content and shape; after some vain tries, one of the volume's own shape.

    `spec.scale` bounds its part of the volume; `spec.ratio` how far its sides' parts of the
    volume's sides are apart.
    """
    spread = math.log(spec.ratio[0]), math.log(spec.ratio[1])
    for _ in range(TRIES):
        part = random.uniform(*spec.scale)
        logarithms = random.uniform(*spread, 3)
        sides = part ** (1 / 3) * np.exp(logarithms - logarithms.mean())
        if (sides <= 1).all():
            break
    else:
        sides = np.full(3, part ** (1 / 3))
    first = random.uniform(0, 1, 3) * (1 - sides)
    voxels = np.array(shape)
    return (*(first * voxels).tolist(), *((first + sides) * voxels).tolist())


def _read(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[int], int]:
    """First and last place of the box, axes that are mirrored (z, y, x from 0), turns."""
    values = np.asarray(parameters, np.float64)
    return values[:3], values[3:6], np.flatnonzero(values[6:9]).tolist(), int(values[9]) % 4


def _before_turns(size: Shape, turns: int) -> Shape:
    depth, height, width = size
    return (depth, width, height) if turns % 2 else size


def _turned(cut: np.ndarray, mirrors: list[int], turns: int) -> np.ndarray:
    mirrored = np.flip(cut, tuple(axis + cut.ndim - 3 for axis in mirrors))
    return np.rot90(mirrored, turns, (-2, -1))


def _is_copy(low: np.ndarray, high: np.ndarray, size: Shape) -> bool:
    return bool((low == np.floor(low)).all() and (high - low == np.array(size)).all())


def _copied(
    values: np.ndarray, corner: np.ndarray, size: Shape, fill: np.ndarray | float
) -> np.ndarray:
    source, target = [slice(None)], [slice(None)]
    for first, count, side in zip(corner.tolist(), size, values.shape[1:], strict=True):
        start, stop = max(first, 0), min(first + count, side)
        source.append(slice(start, max(stop, start)))
        target.append(slice(start - first, max(stop, start) - first))
    if all(each.stop - each.start == count for each, count in zip(target[1:], size, strict=True)):
        return values[tuple(source)]
    cut = np.empty((len(values), *size), np.float32)
    cut[:] = fill
    if all(each.stop > each.start for each in source[1:]):
        cut[tuple(target)] = values[tuple(source)]
    return cut


def _resized(
    values: np.ndarray, low: np.ndarray, high: np.ndarray, size: Shape, fill: np.ndarray | float
) -> np.ndarray:
    """Resize a box with a triangle filter, as Pillow does: it widens where voxels are merged.

    What lies outside counts as `fill`, and enters through the sum of weights that is missing.
    """
    cut = values - fill  # so that outside is 0
    order = sorted(range(3), key=lambda axis: size[axis] / max(high[axis] - low[axis], 1e-9))
    for axis in order:
        first, weights = _filter(low[axis], high[axis], values.shape[axis + 1], size[axis])
        part = cut.take(np.arange(first, first + weights.shape[1]), axis + 1)
        cut = np.moveaxis(np.tensordot(weights, part, (1, axis + 1)), 0, axis + 1)
    return cut + fill


def _filter(low: float, high: float, side: int, count: int) -> tuple[int, np.ndarray]:
    """The first voxel that is needed, and the weights (count, voxels) of those from there on."""
    scale = (high - low) / count
    support = max(scale, 1.0)
    centres = low + (np.arange(count) + 0.5) * scale
    # Voxels outside the volume count where the box reaches them, and nowhere else.
    start = max(math.floor(low - support), min(0, math.floor(low)))
    stop = min(math.ceil(high + support), max(side, math.ceil(high)))
    places = np.arange(start, stop) + 0.5
    weights = np.maximum(1.0 - np.abs(places - centres[:, None]) / support, 0.0)
    weights /= weights.sum(axis=1, keepdims=True)
    first, last = max(start, 0), min(stop, side)
    if first >= last:  # the box does not touch the volume
        return 0, np.zeros((count, 1), np.float32)
    return first, weights[:, first - start : last - start].astype(np.float32)


def _all_of(inside: Sequence[np.ndarray]) -> np.ndarray:
    z, y, x = inside
    return z[:, None, None] & y[:, None] & x
