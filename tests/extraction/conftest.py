"""Small real inputs: a folder of PNG files, and black-box teachers scripted on the spot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
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


@pytest.fixture
def script(tmp_path: Path) -> Callable[[nn.Module], str]:
    """Write a module as a TorchScript file and return the teacher name that loads it."""

    def write(module: nn.Module) -> str:
        path = tmp_path / f"{type(module).__name__.lower()}.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch deprecates what users still have
            images = torch.randn(2, 3, 224, 224)
            torch.jit.trace(module.eval(), images, check_trace=False).save(path)
        return f"torchscript:{path}"

    return write


def save_image(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of twenty small images each, of differing sizes."""
    random = np.random.default_rng(0)
    for label, offset in (("benign", 60), ("malignant", 140)):
        for number in range(20):
            height, width = random.integers(32, 64, 2)
            noise = random.integers(0, 60, (height, width, 3))
            save_image(
                tmp_path / "images" / label / f"{number:02}.png", (noise + offset).astype(np.uint8)
            )
    return tmp_path / "images"
