"""Whether a student classifies the mean of a map, as methods suppose that work on that map."""

from __future__ import annotations

import torch

TOLERANCE = 0.05  # relative; bfloat16 alone makes 0.01 of it


@torch.no_grad()
def is_mean_of(features: torch.Tensor, maps: torch.Tensor) -> bool:
    """Whether features (B, D) are maps (B, D, H, W) averaged over positions, up to rounding."""
    mean = maps.float().mean(dim=(2, 3))
    return bool((features.float() - mean).norm() <= TOLERANCE * mean.norm())
