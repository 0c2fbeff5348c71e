"""A teacher's tap as maps that a student's maps can be compared with: folded, standardised, and as
fine as the coarser of the two.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.methods.base import ChannelStatistics
from rdcache.store import TapSpec
from rdcache.store.tap_axes import as_maps
from rdcache.transferability.standardising import divisors


class TeacherMaps(nn.Module):
    """Folds a cached tap (B, *tap) to maps (B, C, H, W), in float32 also under autocast.

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
            scale = 1 / divisors(statistics.std).view(1, -1, 1, 1)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, tap: torch.Tensor) -> torch.Tensor:
        """Fold a batch of taps in any floating dtype."""
        maps = as_maps(tap.float(), self.kind)
        if self.mean is not None and self.scale is not None:
            maps = (maps - self.mean) * self.scale
        return maps


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
