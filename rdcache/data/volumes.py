"""Volumes: 3D images with their place in the patient, resampled to a spacing, with a range of
intensities.

Arrays are stored (channels, z, y, x) whatever the file's order was: x grows to the patient's right,
y to the front, z to the head ("RAS+"), as nearly as axes of the array can; a rotation that remains
is in the affine. How files are read is in `volume_files.py`, how a spacing is changed in
`volume_resampling.py`, how views are cut in `volume_views.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

Spacing = tuple[float, float, float]
Shape = tuple[int, int, int]

VERSION = 1  # of orientation, resampling and ranges: part of the digest of a dataset of volumes
PERCENTILES = (0.5, 99.5)
MOST_COUNTED = 2**22  # voxels that percentiles are taken of; of more, evenly chosen ones


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxels of a file: how many, and where they lie.

    Attributes:
        shape: voxels along the file's own three axes.
        affine: float64 (4, 4): indices (i, j, k, 1) → millimetres to the right, front and head.
    """

    shape: Shape
    affine: np.ndarray

    @property
    def spacing(self) -> Spacing:
        """Millimetres from voxel to voxel along the file's own axes."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return i, j, k

    @property
    def turned(self) -> tuple[Shape, Spacing]:
        """Voxels, and millimetres from voxel to voxel, along z, y, x."""
        z, y, x = self.order()[0]
        shape, spacing = self.shape, self.spacing
        return (shape[z], shape[y], shape[x]), (spacing[z], spacing[y], spacing[x])

    def order(self) -> tuple[tuple[int, int, int], tuple[bool, bool, bool]]:
        """Which of the file's axes is the nearest to z, y and x, and whether it runs backwards."""
        left, _, right = np.linalg.svd(self.affine[:3, :3] / np.array(self.spacing))
        rotation = left @ right  # the nearest one without shear
        _, axes = linear_sum_assignment(-np.abs(rotation))  # of each world axis, right first
        x, y, z = axes.tolist()
        backwards = [bool(rotation[world, axis] < 0) for world, axis in enumerate(axes)]
        return (z, y, x), (backwards[2], backwards[1], backwards[0])


@dataclass(frozen=True, eq=False)
class Volume:
    """A 3D image.

    Attributes:
        values: float32 (C, D, H, W), in the file's own units (CT: Hounsfield units).
        spacing: millimetres from voxel to voxel along z, y, x.
        affine: float64 (4, 4): indices (x, y, z, 1) of `values` → millimetres to the right, front
            and head.
        low, high: float32 (C, 1, 1, 1), the range that becomes 0 to 1 for whoever has no window of
            its own; a number is taken for all channels. Beyond the border of a volume is `low`.
        original: the file's grid; None: `values` never had another one than its own.
    """

    values: np.ndarray
    spacing: Spacing
    affine: np.ndarray
    low: np.ndarray
    high: np.ndarray
    original: Grid | None = None

    def __post_init__(self) -> None:
        column = (self.values.shape[0], 1, 1, 1)
        for name in ("low", "high"):
            given = np.asarray(getattr(self, name), np.float32).reshape(-1, 1, 1, 1)
            object.__setattr__(self, name, np.broadcast_to(given, column))

    @property
    def shape(self) -> Shape:
        """Voxels along z, y, x."""
        depth, height, width = self.values.shape[1:]
        return depth, height, width

    @property
    def grid(self) -> Grid:
        """The grid of the file, or of `values` where there was no other."""
        if self.original is not None:
            return self.original
        depth, height, width = self.shape
        return Grid((width, height, depth), self.affine)

    def unit(self) -> np.ndarray:
        """The whole volume within its range: float32 (C, D, H, W), from 0 to 1."""
        return unit_range(self.values, self.low, self.high)


def unit_range(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Bring low–high to 0–1 and clip what lies outside: float32, as `values` is shaped."""
    scaled = (values - low) * (1 / (high - low))
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def oriented(array: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Turn an array of a file to z, y, x, without resampling.

    Args:
        array: (I, J, K, …) on the file's grid.

    Returns:
        The array (D, H, W, …), and the affine for its indices (x, y, z).
    """
    axes, backwards = grid.order()
    rest = range(3, array.ndim)
    turned = np.flip(array.transpose(*axes, *rest), _flipped(backwards))
    affine = np.eye(4)
    affine[:3, 3] = grid.affine[:3, 3]
    for column, (axis, reverse) in enumerate(zip(axes[::-1], backwards[::-1], strict=True)):
        step = grid.affine[:3, axis]
        affine[:3, column] = -step if reverse else step
        if reverse:
            affine[:3, 3] += (grid.shape[axis] - 1) * step
    return turned, affine


def back_on_file_axes(array: np.ndarray, grid: Grid) -> np.ndarray:
    """Undo what `oriented` does with an array: (D, H, W) → (I, J, K)."""
    axes, backwards = grid.order()
    return np.flip(array, _flipped(backwards)).transpose(np.argsort(axes).tolist())


def _flipped(backwards: tuple[bool, bool, bool]) -> tuple[int, ...]:
    return tuple(axis for axis, reverse in enumerate(backwards) if reverse)


def make_volume(
    values: np.ndarray, grid: Grid, window: tuple[float, float] | None = None
) -> Volume:
    """A volume of what a file holds.

    Args:
        values: (I, J, K, C) on the file's grid.
        window: the range of intensities of the dataset, in Hounsfield units for CT; without one,
            each channel has its own percentiles.
    """
    turned, affine = oriented(values, grid)
    channels = np.ascontiguousarray(np.moveaxis(turned, -1, 0), np.float32)
    low, high = (
        _percentiles(channels) if window is None else tuple(np.float32(each) for each in window)
    )
    spacing = grid.turned[1]
    return Volume(channels, spacing, affine, np.asarray(low), np.asarray(high), grid)


def _percentiles(channels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The range of each channel; where nearly all is alike, from the least to the greatest."""
    flat = channels.reshape(len(channels), -1)
    some = flat[:, :: max(1, flat.shape[1] // MOST_COUNTED)]
    low, high = np.percentile(some, PERCENTILES, axis=1).astype(np.float32)
    alike = high <= low
    low, high = np.where(alike, flat.min(axis=1), low), np.where(alike, flat.max(axis=1), high)
    # One unit more than a constant of 10⁸ is the same number in float32.
    least = np.maximum(np.float32(1), np.abs(low) * np.float32(1e-6))
    return low, np.where(high > low, high, low + least)
