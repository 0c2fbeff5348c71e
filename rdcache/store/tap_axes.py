"""Which axis of a tap means what: maps, patch tokens and vectors brought to one layout."""

from __future__ import annotations

import math

import torch


def as_maps(tap: torch.Tensor, kind: str) -> torch.Tensor:
    """Fold a tap (B, *tap) to maps (B, C, H, W); one of a volume stays (B, C, D, H, W).

    Patch tokens (B, L, C) go back to their square grid; a class token before them is dropped. Any
    other number of tokens becomes a map of one column.
    """
    if kind in ("map2d", "map3d"):
        return tap
    if kind == "tokens":
        count = tap.shape[1]
        side, side_without_class = math.isqrt(count), math.isqrt(count - 1)
        if side**2 != count and side_without_class**2 == count - 1:
            tap, side = tap[:, 1:], side_without_class
        rows = side if side**2 == tap.shape[1] else tap.shape[1]
        return tap.transpose(1, 2).unflatten(2, (rows, -1))
    return tap[:, :, None, None]


def as_volumes(tap: torch.Tensor, kind: str) -> torch.Tensor:
    """Fold a tap (B, *tap) of a volume to maps (B, C, D, H, W).

    As `as_maps`, but patch tokens go back to a cube. There is no telling which grid any other
    number of tokens had: they become a map of one column.
    """
    if kind == "map3d":
        return tap
    if kind == "tokens":
        count = tap.shape[1]
        side, side_without_class = round(count ** (1 / 3)), round((count - 1) ** (1 / 3))
        if side**3 != count and side_without_class**3 == count - 1:
            tap, side = tap[:, 1:], side_without_class
        channels_first = tap.transpose(1, 2)
        is_cube = side**3 == tap.shape[1]
        return channels_first.unflatten(2, (side,) * 3 if is_cube else (-1, 1, 1))
    return as_maps(tap, kind).unsqueeze(-1)
