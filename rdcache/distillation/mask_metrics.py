"""How near a predicted mask is to the true one: overlap, surface distances, volume, of one case.

Written from the definitions on SciPy's distance transform; nothing of rdcache is needed for it. The
surface of a mask is what an erosion by the cross of nearest neighbours takes away, and what touches
the border of the image. Where a class is missing in a mask the numbers follow a policy:

both empty   Dice 1, IoU 1, NSD 1, HD95 0, volume error 0
one empty    Dice 0, IoU 0, NSD 0, HD95 not a number; volume error not a number where the truth is
             empty
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from scipy.ndimage import binary_erosion, distance_transform_edt


@dataclass(frozen=True)
class MaskScores:
    """Scores of one class, or of each class of a case as arrays.

    Attributes:
        dice: 2·|A∩B| / (|A| + |B|).
        iou: |A∩B| / |A∪B|.
        hd95: the larger of the two 95th percentiles of the distances from one surface to the other,
            in the unit of the spacing.
        nsd: share of both surfaces that lies within the tolerance of the other one.
        volume_error: | |A| − |B| | / |B|, B being the truth.
    """

    dice: np.ndarray
    iou: np.ndarray
    hd95: np.ndarray
    nsd: np.ndarray
    volume_error: np.ndarray


def case_scores(
    predicted: np.ndarray,
    truth: np.ndarray,
    classes: int,
    spacing: Sequence[float],
    tolerance: float,
) -> MaskScores:
    """Score every foreground class of one case.

    Args:
        predicted, truth: class numbers, (H, W) or (D, H, W); 0 is the background.
        classes: how many there are, the background included.
        spacing: distance of neighbours along each axis.
        tolerance: of the NSD, in the unit of the spacing.

    Returns:
        Scores as float64 (classes − 1,).

    Raises:
        ValueError: the two are of other shapes.
    """
    if predicted.shape != truth.shape:
        raise ValueError(f"masks of other shapes: {predicted.shape} and {truth.shape}")
    each = [
        class_scores(predicted == number, truth == number, spacing, tolerance)
        for number in range(1, classes)
    ]
    names = [field.name for field in fields(MaskScores)]
    return MaskScores(*(np.array([float(getattr(it, name)) for it in each]) for name in names))


def class_scores(
    predicted: np.ndarray, truth: np.ndarray, spacing: Sequence[float], tolerance: float
) -> MaskScores:
    """Score one class.

    Args:
        predicted, truth: bool, of one shape.
    """
    own, other = int(np.count_nonzero(predicted)), int(np.count_nonzero(truth))
    if not own and not other:
        return _scores(1.0, 1.0, 0.0, 1.0, 0.0)
    if not own or not other:
        return _scores(0.0, 0.0, np.nan, 0.0, 1.0 if other else np.nan)
    both = int(np.count_nonzero(predicted & truth))
    there, back = surface_distances(predicted, truth, spacing)
    near = np.count_nonzero(there <= tolerance) + np.count_nonzero(back <= tolerance)
    return _scores(
        2 * both / (own + other),
        both / (own + other - both),
        max(np.percentile(there, 95), np.percentile(back, 95)),
        near / (len(there) + len(back)),
        abs(own - other) / other,
    )


def surface_distances(
    one: np.ndarray, other: np.ndarray, spacing: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """From each surface element of a mask to the nearest of the other mask, and back.

    Args:
        one, other: bool, of one shape; neither is empty.
    """
    # Nothing outside of what both cover is asked about, so the transforms need not go there.
    filled = one | other
    box = tuple(
        slice(int(places[0]), int(places[-1]) + 1)
        for places in (
            np.flatnonzero(filled.any(axis=tuple(it for it in range(filled.ndim) if it != axis)))
            for axis in range(filled.ndim)
        )
    )
    surfaces = [it[box] ^ binary_erosion(it[box]) for it in (one, other)]
    distances = [distance_transform_edt(~surface, sampling=spacing) for surface in surfaces]
    return distances[1][surfaces[0]], distances[0][surfaces[1]]


def overlaps(
    predicted: np.ndarray, truth: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Dice and IoU of every foreground class of one case: float64 (classes − 1,) each. Without
    surfaces it takes one pass over the masks, which every epoch can afford.
    """
    return overlaps_of(confusion(predicted, truth, classes))


def confusion(predicted: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """How often each class is taken for each: int64 (classes, classes), rows being the truth."""
    pairs = np.bincount(
        truth.ravel().astype(np.int64) * classes + predicted.ravel(), minlength=classes**2
    )
    return pairs.reshape(classes, classes)


def overlaps_of(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dice and IoU of every foreground class from `confusion`, or from a sum of several."""
    both = np.diag(pairs)[1:].astype(np.float64)
    total = (pairs.sum(axis=0) + pairs.sum(axis=1))[1:]
    dice = np.divide(2 * both, total, out=np.ones_like(both), where=total > 0)
    union = total - both
    return dice, np.divide(both, union, out=np.ones_like(both), where=union > 0)


def _scores(*values: float) -> MaskScores:
    return MaskScores(*(np.float64(value) for value in values))  # type: ignore[arg-type]
