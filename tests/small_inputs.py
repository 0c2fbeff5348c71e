"""Black-box teachers scripted on the spot, and a way to write small images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn


class Pooling(nn.Module):
    """A black box with a map and a vector: average-pooled pixels, times a gain."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = nn.functional.adaptive_avg_pool2d(images, [4, 4]) * self.gain
        return pooled, pooled.mean(dim=[2, 3])


class Projection(nn.Module):
    """A product whose last bits depend on how many threads add it up."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * 224 * 224, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.weight


class NanOnDark(nn.Module):
    """Gives NaN for images that are black everywhere."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(images, [4, 4])
        dark = (images.amax(dim=[1, 2, 3]) < -1.7).view(-1, 1, 1, 1)
        return torch.where(dark, torch.full_like(pooled, float("nan")), pooled)


class LargeOnBright(nn.Module):
    """Gives numbers beyond float16 for images that are white everywhere, and only for these."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = nn.functional.adaptive_avg_pool2d(images, [4, 4])
        bright = (images.amin(dim=[1, 2, 3]) > 2.0).view(-1, 1, 1, 1)
        return torch.where(bright, pooled * 1e5, pooled), pooled.mean(dim=[2, 3])


def save_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
