"""Layers and resizing of maps (B, C, *positions), of images and volumes alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from rdcache.losses.map_similarity import average_pooled


def convolution(dimensions: int, inputs: int, outputs: int, kernel: int) -> nn.Module:
    """A convolution without bias that keeps the positions; the kernel is odd."""
    kind = nn.Conv3d if dimensions == 3 else nn.Conv2d
    return kind(inputs, outputs, kernel, padding=kernel // 2, bias=False)


def batch_norm(dimensions: int, channels: int) -> nn.Module:
    """Batch norm over samples and positions."""
    return nn.BatchNorm3d(channels) if dimensions == 3 else nn.BatchNorm2d(channels)


def positions_of(maps: torch.Tensor) -> tuple[int, ...]:
    """The axes of positions: (2, 3), or (2, 3, 4)."""
    return tuple(range(2, maps.ndim))


def resized(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Bring maps to a size: averaged where an axis is too long, interpolated where too short."""
    coarse = [min(have, want) for have, want in zip(maps.shape[2:], size, strict=True)]
    maps = average_pooled(maps, coarse)
    if coarse == list(size):
        return maps
    mode = "trilinear" if maps.ndim == 5 else "bilinear"
    return F.interpolate(maps, list(size), mode=mode, align_corners=False)
