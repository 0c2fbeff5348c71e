"""A teacher's tap as maps that a student's maps can be compared with: folded, standardised, and as
fine as the coarser of the two.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.methods.base import ChannelStatistics
from rdcache.store import TapSpec

LEAST_SPREAD = 0.05  # smallest standard deviation divided by, in medians over varying channels


class TeacherMaps(nn.Module):
    """Folds a cached tap (B, *tap) to float maps (B, C, H, W).

    Args:
        tap: a map (C, H, W), patch tokens (L, C) or a vector (C).
        statistics: of the tap's channels, where they are to be standardised.
    """

    mean: torch.Tensor | None
    scale: torch.Tensor | None

    def __init__(self, tap: TapSpec, statistics: ChannelStatistics | None = None) -> None:
        super().__init__()
        self.kind = tap.kind
        mean = scale = None
        if statistics is not None:
            mean = statistics.mean.view(1, -1, 1, 1)
            # A channel that hardly varies in training must not blow up what it says later.
            varying = statistics.std[statistics.std > 0]
            floor = LEAST_SPREAD * varying.median() if len(varying) else torch.ones(())
            scale = 1 / statistics.std.clamp_min(floor).view(1, -1, 1, 1)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, tap: torch.Tensor) -> torch.Tensor:
        """Fold a batch of taps in any floating dtype."""
        maps = as_maps(tap.float(), self.kind)
        if self.mean is not None and self.scale is not None:
            maps = (maps - self.mean) * self.scale
        return maps


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


def map_shape(tap: TapSpec) -> tuple[int, int, int]:
    """Channels, height and width of a tap once it is a map.

    Raises:
        UsageError: it is a volume.
    """
    if tap.kind == "map3d":
        raise UsageError("this method reads maps, tokens and vectors, not volumes.", tap=tap.name)
    folded = as_maps(torch.empty((1, *tap.shape), device="meta"), tap.kind)
    _, channels, height, width = folded.shape
    return channels, height, width


def with_equal_positions(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Average-pool two maps (B, ·, H, W) down to the smaller height and the smaller width."""
    size = (min(x.shape[2], y.shape[2]), min(x.shape[3], y.shape[3]))
    return _pooled(x, size), _pooled(y, size)


def _pooled(maps: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)
