"""The reprogrammer: from a teacher's tap into the student's feature space.

1×1 convolution to the working width → blocks → (1×1 convolution to the student's width) → global
average pooling. The paper says "standard residual blocks" and nothing else; the rest is ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from rdcache.losses.map_similarity import average_pooled
from rdcache.methods.base import ChannelStatistics, TeacherConfig
from rdcache.methods.layers import batch_norm, convolution, positions_of
from rdcache.methods.teacher_maps import TeacherMaps, map_shape
from rdcache.store import TapSpec

Norm = Literal["bn", "gn", "ln"]


class ReprogrammerConfig(TeacherConfig):
    """Options of the reprogrammer."""

    block: Literal["basic_block", "bottleneck", "conv3", "mlp"] = Field(
        default="basic_block",
        description="Blocks: two 3×3 convolutions or a bottleneck with a shortcut, one 3×3 "
        "convolution without, or one 1×1 convolution without.",
    )
    n_blocks: int = Field(default=1, ge=0, description="Number of blocks.")
    width: int | None = Field(
        default=256,
        ge=4,
        description="Channels inside the blocks; null for the student's feature width.",
    )
    norm: Norm = Field(
        default="bn", description="Batch norm, group norm, or layer norm over a whole map."
    )
    spatial: Literal["map", "pooled"] = Field(
        default="pooled", description="Reprogram the map and pool after, or pool the tap first."
    )
    map_side: int | None = Field(
        default=None,
        ge=1,
        description="With spatial=map: average larger maps down to so many positions a side first; "
        "null leaves them as they are.",
    )
    feature_norm: Literal["none", "channel"] = Field(
        default="channel",
        description="Standardise each channel of the tap by its mean and standard deviation over "
        "the training samples.",
    )
    dropout: float = Field(
        default=0.0, ge=0, lt=1, description="Dropout on the reprogrammed features."
    )


class Reprogrammer(nn.Module):
    """Maps a cached tap (B, *tap) to features (B, D) that a student can imitate.

    Args:
        tap: a map (C, *positions), patch tokens (L, C) or a vector (C).
        feature_dim: D.
        statistics: of the tap's channels, where they are to be standardised.
        dimensions: 2 for images, 3 for volumes.
    """

    def __init__(
        self,
        tap: TapSpec,
        feature_dim: int,
        config: ReprogrammerConfig,
        statistics: ChannelStatistics | None = None,
        dimensions: int = 2,
    ) -> None:
        super().__init__()
        channels, *sides = map_shape(tap, dimensions)
        most = 1 if config.spatial == "pooled" else config.map_side
        self.sides = [min(side, most or side) for side in sides]
        kernel = 1 if max(self.sides) == 1 or config.block == "mlp" else 3
        width = config.width or feature_dim
        blocks = _Blocks(dimensions, config.norm)
        layers: list[nn.Module] = [blocks.convolution(channels, width, 1)]
        layers += [blocks.block(config.block, width, kernel) for _ in range(config.n_blocks)]
        if width != feature_dim or config.block == "conv3":
            layers.append(blocks.convolution(width, feature_dim, 1))
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.maps = TeacherMaps(tap, statistics, dimensions)

    def forward(self, tap: torch.Tensor) -> torch.Tensor:
        """Map (B, *tap) in any floating dtype to features (B, D); autocast decides about theirs."""
        reprogrammed = self.layers(average_pooled(self.maps(tap), self.sides))
        features: torch.Tensor = reprogrammed.mean(dim=positions_of(reprogrammed))
        return self.dropout(features)

    def own_features(self, tap: torch.Tensor) -> torch.Tensor:
        """Return what the teacher itself says: (B, *tap) averaged over positions, (B, C)."""
        maps: torch.Tensor = self.maps(tap)
        return maps.mean(dim=positions_of(maps))


class ResidualBlock(nn.Module):
    """relu(x + f(x)), where f ends in a norm."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Add the branch; the shape stays."""
        return torch.relu(maps + self.branch(maps))


@dataclass(frozen=True)
class _Blocks:
    """What reprogrammers are made of.

    Attributes:
        dimensions: 2 for images, 3 for volumes.
        norm: behind every convolution.
    """

    dimensions: int
    norm: Norm

    def bare(self, inputs: int, outputs: int, kernel: int) -> nn.Sequential:
        """A convolution and its norm."""
        norm = (
            batch_norm(self.dimensions, outputs)
            if self.norm == "bn"
            else nn.GroupNorm(math.gcd(outputs, 32) if self.norm == "gn" else 1, outputs)
        )
        return nn.Sequential(convolution(self.dimensions, inputs, outputs, kernel), norm)

    def convolution(self, inputs: int, outputs: int, kernel: int) -> nn.Sequential:
        """A convolution, its norm and ReLU."""
        return nn.Sequential(*self.bare(inputs, outputs, kernel), nn.ReLU())

    def block(self, kind: str, width: int, kernel: int) -> nn.Module:
        """One block of the kind that the option names."""
        if kind == "basic_block":
            return ResidualBlock(
                self.convolution(width, width, kernel), self.bare(width, width, kernel)
            )
        if kind == "bottleneck":
            narrow = max(width // 4, 1)
            return ResidualBlock(
                self.convolution(width, narrow, 1),
                self.convolution(narrow, narrow, kernel),
                self.bare(narrow, width, 1),
            )
        return self.convolution(width, width, kernel)
