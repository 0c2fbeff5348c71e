"""A teacher's tap as maps that a student's maps can be compared with: folded, standardised, and as
fine as the coarser of the two.
"""

from __future__ import annotations

import torch
from torch import nn

from rdcache.errors import UsageError
from rdcache.losses.map_similarity import average_pooled
from rdcache.methods.base import ChannelStatistics
from rdcache.store import TapSpec
from rdcache.store.tap_axes import as_maps, as_volumes
from rdcache.transferability.standardising import divisors


class TeacherMaps(nn.Module):
    """Folds a cached tap (B, *tap) to maps (B, C, H, W), in float32 also under autocast; those of
    volumes to (B, C, D, H, W).

    Args:
        tap: a map (C, *positions), patch tokens (L, C) or a vector (C).
        statistics: of the tap's channels, where they are to be standardised.
        dimensions: 2 for images, 3 for volumes.
    """

    mean: torch.Tensor | None
    scale: torch.Tensor | None

    def __init__(
        self, tap: TapSpec, statistics: ChannelStatistics | None = None, dimensions: int = 2
    ) -> None:
        super().__init__()
        self.kind = tap.kind
        self.fold = as_volumes if dimensions == 3 else as_maps
        mean = scale = None
        if statistics is not None:
            channels = (1, -1, *(1,) * dimensions)
            mean = statistics.mean.view(channels)
            scale = 1 / divisors(statistics.std).view(channels)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)

    def forward(self, tap: torch.Tensor) -> torch.Tensor:
        """Fold a batch of taps in any floating dtype."""
        maps = self.fold(tap.float(), self.kind)
        if self.mean is not None and self.scale is not None:
            maps = (maps - self.mean) * self.scale
        return maps


def map_shape(tap: TapSpec, dimensions: int = 2) -> tuple[int, ...]:
    """Channels and positions of a tap once it is a map: (C, H, W), of volumes (C, D, H, W).

    Raises:
        UsageError: it is the map of a volume where images are read, or the reverse.
    """
    if tap.kind == ("map2d" if dimensions == 3 else "map3d"):
        have, need = ("volumes", "images") if dimensions == 3 else ("images", "volumes")
        raise UsageError(f"the samples are {have}, not {need} as this tap's.", tap=tap.name)
    fold = as_volumes if dimensions == 3 else as_maps
    return tuple(fold(torch.empty((1, *tap.shape), device="meta"), tap.kind).shape[1:])


def with_equal_positions(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Average-pool two maps (B, ·, *positions) down to the smaller length of each axis."""
    size = [min(sides) for sides in zip(x.shape[2:], y.shape[2:], strict=True)]
    return average_pooled(x, size), average_pooled(y, size)
