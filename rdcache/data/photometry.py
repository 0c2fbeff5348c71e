"""Photometric jitter and normalisation, as one scaling, one shift and one clamp of each pixel.

Brightness scales an image x by b, contrast scales its distance from its mean by c, and the result
stays within 0–255: clamp(b·c·x + b·(1 − c)·mean(x)). Subtracting the normalisation's mean and
dividing by its deviation is again a scale and a shift, of the limits too, so that all of it is one
multiplication, one addition and one clamp, with factors that are computed once an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rdcache.memory import sent

CPU = torch.device("cpu")
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
    """Jitters and normalises batches.

    Args:
        mean, std: the student's normalisation, per channel, in fractions of full white.
        jitter: none if there is none.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], jitter: Jitter | None) -> None:
        self.jitter = jitter
        self._constants = {CPU: (torch.tensor(mean) * WHITE, torch.tensor(std) * WHITE)}

    def on_cpu(
        self, pixels: np.ndarray, centres: np.ndarray, generator: np.random.Generator | None
    ) -> torch.Tensor:
        """Jitter and normalise on this thread alone.

        PyTorch would share these short steps among its threads, which the training step keeps
        busy: waiting for them took up to a hundred times as long as the work itself.

        Args:
            pixels: uint8 (B, S, S, 3).
            centres: float32 (B,), each image's mean grey level.
            generator: draws the jitter; without one there is none.

        Returns:
            float32 (B, 3, S, S), in channels-last memory order.
        """
        count, size = pixels.shape[:2]
        # A row of S pixels is 3·S numbers in a row: long enough for vector instructions.
        gain, shift, lowest, highest = (
            np.tile(each.numpy(), size)[:, None]
            for each in self._linear(torch.from_numpy(centres), generator)
        )
        rows = pixels.reshape(count, size, size * 3)
        out = np.empty(rows.shape, np.float32)
        block = max(1, BLOCK_VALUES // (3 * size**2))
        for start in range(0, count, block):
            part = slice(start, start + block)
            values = out[part]
            np.copyto(values, rows[part])
            np.multiply(values, gain[part], out=values)
            np.add(values, shift[part], out=values)
            if generator is not None and self.jitter is not None:
                np.maximum(values, lowest, out=values)
                np.minimum(values, highest, out=values)
        return torch.from_numpy(out).view(count, size, size, 3).permute(0, 3, 1, 2)

    def on_device(
        self, pixels: torch.Tensor, centres: torch.Tensor, generator: np.random.Generator | None
    ) -> torch.Tensor:
        """The same for pixels (B, S, S, 3) of any dtype, and their means, on any device."""
        gain, shift, lowest, highest = (
            each[:, None, None] for each in self._linear(centres, generator)
        )
        values = torch.addcmul(shift, pixels.float(), gain)
        return torch.clamp(values, lowest, highest, out=values).permute(0, 3, 1, 2)

    def _linear(
        self, centres: torch.Tensor, generator: np.random.Generator | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Gain and shift of each image's channels, (B, 3), and the channels' limits, (1, 3)."""
        bright, contrast = torch.ones_like(centres), torch.ones_like(centres)
        if generator is not None and self.jitter is not None:
            drawn = self.jitter.factors(len(centres), generator)
            bright, contrast = (sent(each, centres.device) for each in drawn)
        if centres.device not in self._constants:  # sent once: every copy is waited for
            mean, std = self._constants[CPU]
            self._constants[centres.device] = mean.to(centres.device), std.to(centres.device)
        mean, std = self._constants[centres.device]
        gain = (bright * contrast)[:, None] / std
        shift = ((bright * (1 - contrast) * centres)[:, None] - mean) / std
        return gain, shift, (-mean / std)[None], ((WHITE - mean) / std)[None]
