"""Masks of volumes as class numbers, checked against the grid of their image."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from rdcache.data.decoding import UnreadableImageError
from rdcache.data.samples import Masked
from rdcache.data.volume_files import grid_of, read_class_numbers

LISTED = 6
LARGEST = 2**16  # a mask with larger numbers holds no class numbers

Relabel = Callable[[np.ndarray], np.ndarray]


def volume_masks(relabel: Relabel) -> Callable[[Masked], np.ndarray]:
    """What reads masks of a dataset; of several files the largest class number counts.

    Args:
        relabel: see `read_class_numbers`.
    """

    def read(sample: Masked) -> np.ndarray:
        masks = [read_class_numbers(path, sample.path, relabel) for path in sample.masks]
        if not masks:
            return np.zeros(grid_of(sample.path).turned[0], np.uint8)
        return np.asarray(np.maximum.reduce(masks))

    return read


def class_numbers(numbers: Mapping[int, int]) -> Relabel:
    """A rule that gives each number of a file its class, and refuses numbers of none.

    Args:
        numbers: as they are in files → class numbers.
    """

    def relabel(found: np.ndarray) -> np.ndarray:
        low, high = int(found.min()), int(found.max())
        table = np.full(max(high, max(numbers)) + 1, -1, np.int16) if high < LARGEST else None
        if low >= 0 and table is not None:
            table[list(numbers)] = list(numbers.values())
            labels = table[found.astype(np.int64)]
            if (labels >= 0).all():
                return labels
        unknown = sorted(set(np.unique(found).tolist()) - set(numbers))
        listed = ", ".join(map(str, unknown[:LISTED])) + (", …" if unknown[LISTED:] else "")
        known = ", ".join(map(str, sorted(numbers)))
        raise UnreadableImageError(f"it holds {listed}, and classes have the numbers {known}")

    return relabel
