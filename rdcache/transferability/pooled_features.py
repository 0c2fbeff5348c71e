"""One vector a sample from a cached tap: its clean view, averaged over positions.

A map is averaged over its pixels, patch tokens over the patches (a class token is left out), and a
vector is taken as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from rdcache.data import CLEAN_VIEW
from rdcache.errors import UnknownNameError
from rdcache.store import Store, TapSpec
from rdcache.store.tap_axes import as_maps

BYTES_AT_ONCE = 64 * 2**20


def usable_rows(store: Store, split: str) -> np.ndarray:
    """Sample numbers of a split whose clean view is stored (no NaN or Inf): int64, ascending."""
    rows = store.samples_of(split)
    return rows[store.available(rows, CLEAN_VIEW)]


def pooled_features(
    store: Store, tap: str, samples: str | Sequence[int] | np.ndarray
) -> torch.Tensor:
    """Read the clean view of some samples and average it over positions.

    Batches are bounded in bytes, so that memory holds the result and little else.

    Args:
        samples: sample numbers, or the name of a split, which stands for its `usable_rows`.

    Returns:
        float32 (n, C), int8 taps multiplied with their scales, in the order asked for.

    Raises:
        UsageError: a sample whose clean view is not stored.
        UnknownNameError: a tap that the store does not have.
    """
    rows = usable_rows(store, samples) if isinstance(samples, str) else np.asarray(samples)
    if tap not in store.taps:
        raise UnknownNameError.of("tap in this store", tap, store.taps)
    spec = store.taps[tap]
    at_once = max(1, BYTES_AT_ONCE // (4 * math.prod(spec.shape)))
    features = torch.empty(len(rows), spec.shape[spec.channel_axis])
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        values = store.read(rows[part], CLEAN_VIEW, [tap])[tap]
        features[part] = _averaged(values.float(), spec)
    return features


def _averaged(values: torch.Tensor, tap: TapSpec) -> torch.Tensor:
    """(n, *tap) → (n, C)."""
    maps = values if tap.kind == "map3d" else as_maps(values, tap.kind)
    return maps.flatten(2).mean(dim=2)
