"""Which axis of a tap means what: maps, patch tokens and vectors brought to one layout."""

from __future__ import annotations

import math

import torch


def as_maps(tap: torch.Tensor, kind: str) -> torch.Tensor:
    """Fold a tap (B, *tap) to maps (B, C, H, W).

    Patch tokens (B, L, C) go back to their square grid; a class token before them is dropped. Any
    other number of tokens becomes a map of one column.
    """
    if kind == "map2d":
        return tap
    if kind == "tokens":
        count = tap.shape[1]
        side, side_without_class = math.isqrt(count), math.isqrt(count - 1)
        if side**2 != count and side_without_class**2 == count - 1:
            tap, side = tap[:, 1:], side_without_class
        rows = side if side**2 == tap.shape[1] else tap.shape[1]
        return tap.transpose(1, 2).unflatten(2, (rows, -1))
    return tap[:, :, None, None]
