"""The reprogrammer: from a teacher's tap into the student's feature space.

1×1 convolution to the working width → blocks → (1×1 convolution to the student's width) → global
average pooling. The paper says "standard residual blocks" and nothing else; the rest is ours.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from rdcache.methods.base import ChannelStatistics, TeacherConfig
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
        tap: a map (C, H, W), patch tokens (L, C) or a vector (C).
        feature_dim: D.
        statistics: of the tap's channels, where they are to be standardised.
    """

    def __init__(
        self,
        tap: TapSpec,
        feature_dim: int,
        config: ReprogrammerConfig,
        statistics: ChannelStatistics | None = None,
    ) -> None:
        super().__init__()
        self.pooled = config.spatial == "pooled"
        channels, *sides = map_shape(tap)
        kernel = 1 if self.pooled or sides == [1, 1] or config.block == "mlp" else 3
        width = config.width or feature_dim
        layers: list[nn.Module] = [_convolution(channels, width, 1, config.norm)]
        layers += [_block(config.block, width, kernel, config.norm) for _ in range(config.n_blocks)]
        if width != feature_dim or config.block == "conv3":
            layers.append(_convolution(width, feature_dim, 1, config.norm))
        self.layers = nn.Sequential(*layers)
        self.dropout = nn.Dropout(config.dropout)
        self.maps = TeacherMaps(tap, statistics)

    def forward(self, tap: torch.Tensor) -> torch.Tensor:
        """Map (B, *tap) in any floating dtype to features (B, D); autocast decides about theirs."""
        maps = self.maps(tap)
        if self.pooled:
            maps = maps.mean(dim=(2, 3), keepdim=True)
        features: torch.Tensor = self.layers(maps).mean(dim=(2, 3))
        return self.dropout(features)

    def own_features(self, tap: torch.Tensor) -> torch.Tensor:
        """Return what the teacher itself says: (B, *tap) averaged over positions, (B, C)."""
        return self.maps(tap).mean(dim=(2, 3))


class ResidualBlock(nn.Module):
    """relu(x + f(x)), where f ends in a norm."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.branch = nn.Sequential(*layers)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Add the branch; the shape stays."""
        return torch.relu(maps + self.branch(maps))


def _norm(channels: int, norm: Norm) -> nn.Module:
    if norm == "bn":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(math.gcd(channels, 32) if norm == "gn" else 1, channels)


def _bare(inputs: int, outputs: int, kernel: int, norm: Norm) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, _norm(outputs, norm))


def _convolution(inputs: int, outputs: int, kernel: int, norm: Norm) -> nn.Sequential:
    return nn.Sequential(*_bare(inputs, outputs, kernel, norm), nn.ReLU())


def _block(kind: str, width: int, kernel: int, norm: Norm) -> nn.Module:
    if kind == "basic_block":
        return ResidualBlock(
            _convolution(width, width, kernel, norm), _bare(width, width, kernel, norm)
        )
    if kind == "bottleneck":
        narrow = max(width // 4, 1)
        return ResidualBlock(
            _convolution(width, narrow, 1, norm),
            _convolution(narrow, narrow, kernel, norm),
            _bare(narrow, width, 1, norm),
        )
    return _convolution(width, width, kernel, norm)
