"""Photometric jitter and normalisation, as one scaling, one shift and one clamp of each pixel.

Brightness scales an image x by b, contrast scales its distance from its mean by c, and the result
stays within 0–255: clamp(b·c·x + b·(1 − c)·mean(x)). Subtracting the normalisation's mean and
dividing by its deviation is again a scale and a shift, of the limits too, so that all of it is one
multiplication, one addition and one clamp, with factors that are computed once an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass

import numpy as np
import torch

WHITE = 255.0
# Images are converted in blocks that stay in a core's cache between the three steps.
BLOCK_VALUES = 200_000


@dataclass(frozen=True)
class Jitter:
    """Photometric jitter, the same for all pixels of an image; geometry is never touched.

    Attributes:
        brightness: each image is scaled by a factor drawn from 1 ± brightness.
        contrast: each image's distance from its mean is scaled by a factor from 1 ± contrast.
    """

    brightness: float = 0.2
    contrast: float = 0.2

    def factors(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draw brightness and contrast of so many images: float32 (count,) each."""
        draws = generator.uniform(-1.0, 1.0, (2, count)).astype(np.float32)
        return 1 + self.brightness * draws[0], 1 + self.contrast * draws[1]


class Photometry:
    """Jitters and normalises batches of one size.

    Args:
        mean, std: the student's normalisation, per channel, in fractions of full white.
        size: side of the images in pixels.
        jitter: none if there is none.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        size: int,
        jitter: Jitter | None,
    ) -> None:
        self.jitter = jitter
        self.size = size
        self._mean = torch.tensor(mean) * WHITE
        self._std = torch.tensor(std) * WHITE
        # A row of S pixels is 3·S numbers in a row: long enough for vector instructions.
        self._lowest = (-self._mean / self._std).repeat(size)
        self._highest = ((WHITE - self._mean) / self._std).repeat(size)

    def to(self, device: torch.device) -> Photometry:
        """The same, for batches that lie on a device."""
        moved = copy(self)
        for name in ("_mean", "_std", "_lowest", "_highest"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def __call__(
        self,
        pixels: torch.Tensor,
        centres: torch.Tensor,
        generator: np.random.Generator | None,
    ) -> torch.Tensor:
        """Jitter and normalise.

        Args:
            pixels: (B, S, S, 3), grey levels from 0 to 255, of any dtype.
            centres: float32 (B,), each image's mean grey level.
            generator: draws the jitter; without one there is none.

        Returns:
            float32 (B, 3, S, S), in channels-last memory order.
        """
        count, size = len(pixels), self.size
        gain, shift, clamps = self._linear(centres, generator)
        rows = pixels.view(count, size, size * 3)
        out = torch.empty(rows.shape, device=rows.device)
        block = max(1, BLOCK_VALUES // (3 * size**2)) if rows.device.type == "cpu" else count
        for start in range(0, count, block):
            part = slice(start, start + block)
            values = out[part].copy_(rows[part])
            torch.addcmul(shift[part], values, gain[part], out=values)
            if clamps:
                torch.clamp(values, self._lowest, self._highest, out=values)
        return out.view(count, size, size, 3).permute(0, 3, 1, 2)

    def _linear(
        self, centres: torch.Tensor, generator: np.random.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """Gain and shift of each number of a row, (B, 1, 3·S), and whether there are limits."""
        jittered = generator is not None and self.jitter is not None
        bright, contrast = torch.ones_like(centres), torch.ones_like(centres)
        if generator is not None and self.jitter is not None:
            drawn = self.jitter.factors(len(centres), generator)
            bright, contrast = (torch.from_numpy(each).to(centres.device) for each in drawn)
        gain = (bright * contrast)[:, None] / self._std
        shift = ((bright * (1 - contrast) * centres)[:, None] - self._mean) / self._std
        return gain.repeat(1, self.size)[:, None], shift.repeat(1, self.size)[:, None], jittered
