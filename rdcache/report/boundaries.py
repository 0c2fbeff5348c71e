"""The plane through three images, and how far classifiers agree on it.

After Somepalli et al., "Can Neural Networks Learn the Same Model Twice?" (CVPR 2022): three images
span a plane in pixel space, each point of a grid on it is an image, and each classifier gives it a
class. How the plane falls into classes shows what a classifier has learnt around and between the
three; the share of points to which two classifiers give the same class says how alike they are.

Every point of the plane is w₁x₁ + w₂x₂ + w₃x₃ with w₁ + w₂ + w₃ = 1, and resizing is linear. So a
classifier with another input size needs no plane of its own: the same weights, applied to the three
images as it sees them, give the same point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from rdcache.errors import UsageError

MARGIN = 0.1  # around the three images, in parts of the extent along each axis
LEAST_SINE = 1e-6  # of the angle at the first image; below it the three lie on one line
CORNERS = 3


@dataclass(frozen=True)
class Plane:
    """The plane through three images.

    Attributes:
        axes: float64 (2, P), orthonormal; the first points from image 1 to image 2, the second from
            that line to image 3.
        corners: float64 (3, 2), where the images lie in these axes; image 1 at the origin.
    """

    axes: np.ndarray
    corners: np.ndarray

    def weights(self, points: np.ndarray) -> np.ndarray:
        """How much of each image is in points of the plane.

        Args:
            points: float64 (…, 2).

        Returns:
            float64 (…, 3), each three summing to 1; negative where the point lies outside of the
            triangle.
        """
        (across, _), (along, up) = self.corners[1:]
        third = points[..., 1] / up
        second = (points[..., 0] - third * along) / across
        return np.stack([1 - second - third, second, third], axis=-1)

    def grid(self, resolution: int) -> tuple[np.ndarray, tuple[float, float, float, float]]:
        """Points of a rectangle around the three images.

        Returns:
            float64 (resolution, resolution, 2), rows from bottom to top, and the rectangle's left,
            right, bottom and top. Points are the centres of equal cells.
        """
        low, high = self.corners.min(axis=0), self.corners.max(axis=0)
        low, high = low - MARGIN * (high - low), high + MARGIN * (high - low)
        steps = (np.arange(resolution) + 0.5) / resolution
        x, y = (low[axis] + steps * (high[axis] - low[axis]) for axis in (0, 1))
        points = np.stack(np.meshgrid(x, y), axis=-1)
        return points, (float(low[0]), float(high[0]), float(low[1]), float(high[1]))


def plane_through(images: np.ndarray) -> Plane:
    """Span the plane of three images (3, …).

    Raises:
        UsageError: they lie on one line, as two of the same do.
    """
    first, second, third = images.reshape(CORNERS, -1).astype(np.float64)
    to_second, to_third = second - first, third - first
    across = float(np.linalg.norm(to_second))
    x = to_second / across if across else to_second
    along = float(x @ to_third)
    rest = to_third - along * x
    up = float(np.linalg.norm(rest))
    if not across or up <= LEAST_SINE * np.linalg.norm(to_third):
        raise UsageError("these three images span no plane: they lie on one line, or are equal.")
    return Plane(np.stack([x, rest / up]), np.array([[0.0, 0.0], [across, 0.0], [along, up]]))


def drawn_triplets(labels: np.ndarray, seed: int) -> Iterator[tuple[int, int, int]]:
    """Draw images three by three, of as many classes as there are, without end.

    The same labels and seed give the same triplets, however many are taken.

    Args:
        labels: int64 (n,).

    Yields:
        Positions in `labels`, all different.

    Raises:
        UsageError: there are not three images.
    """
    if len(labels) < CORNERS:
        raise UsageError("a plane needs three images.", there_are=len(labels))
    random = np.random.default_rng(seed)
    while True:
        order = random.permutation(len(labels))
        _, firsts = np.unique(labels[order], return_index=True)
        of_each = order[firsts]  # one image of each class
        chosen = random.permutation(of_each)[:CORNERS]
        others = order[~np.isin(order, chosen)]
        first, second, third = (int(at) for at in [*chosen, *others][:CORNERS])
        yield first, second, third


@dataclass(frozen=True)
class Agreement:
    """How often two classifiers give a point of a plane the same class.

    Attributes:
        mean: share of points, mean over the planes.
        std: sample standard deviation over the planes; 0 of a single one.
    """

    mean: float
    std: float


def agreement(one: np.ndarray, other: np.ndarray) -> Agreement:
    """Compare the classes (planes, points…) of two classifiers, plane by plane."""
    shares = (one == other).reshape(len(one), -1).mean(axis=1)
    return Agreement(float(shares.mean()), float(shares.std(ddof=1)) if len(shares) > 1 else 0.0)
