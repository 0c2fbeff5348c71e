"""From the voxels of a view to the numbers a network was trained on.

The box is cut in the data room. Here its values are brought to 0…1: by the window that the network
was trained with, or else by the intensity rule of the dataset.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch

SMALLEST_RANGE = 1e-8  # of a blank volume, which becomes 0 everywhere


@dataclass(frozen=True)
class VolumePreprocessing:
    """What a network of volumes expects of its input.

    Attributes:
        patch: voxels of the box along z, y, x.
        channels: of the network's input. A volume of one channel is repeated where it has more.
        window: values that become 0 and 1, in Hounsfield units; None: the volume's own, by the
            dataset's intensity rule.
        scaling: `range`, to 0…1 by the window; or `zscore`, by mean and deviation of the box's
            voxels above 0, after values beyond the window are clipped.
        mean: per channel or one for all, of the values in 0…1.
        std: as `mean`.
        divisor: what the sides of the box must be multiples of.
        spacing: millimetres between voxels along z, y, x that the network was trained on; None
            where it says nothing of it. Volumes are not resampled for it unless asked to be.
    """

    patch: tuple[int, int, int]
    channels: int = 1
    window: tuple[float, float] | None = None
    scaling: Literal["range", "zscore"] = "range"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    divisor: int = 1
    spacing: tuple[float, float, float] | None = None

    @property
    def dimensions(self) -> int:
        """Of what the network looks at: volumes."""
        return 3

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one volume at the network's input: (channels, *patch)."""
        return (self.channels, *self.patch)

    def outside(self, low: np.ndarray) -> np.ndarray | float:
        """What a box holds beyond the border of a volume, before `scaled`: what becomes 0, or is
        none of the voxels above 0.

        Args:
            low: see `scaled`.
        """
        if self.scaling == "zscore":
            return 0.0
        return low if self.window is None else self.window[0]

    def scaled(self, values: np.ndarray, low: Any, high: Any) -> np.ndarray:
        """Bring a box to 0…1, or to what else `scaling` says.

        Args:
            values: float32 (C, d, h, w).
            low: the dataset's intensity rule for this volume; a number, or one for each channel.
            high: as `low`.

        Returns:
            float32 (C, d, h, w).
        """
        if self.scaling == "zscore":
            return _zscore(values if self.window is None else np.clip(values, *self.window))
        bounds = (low, high) if self.window is None else self.window
        lowest, highest = (np.asarray(bound, np.float32).reshape(-1, 1, 1, 1) for bound in bounds)
        fractions = (values - lowest) / np.maximum(highest - lowest, np.float32(SMALLEST_RANGE))
        return np.clip(fractions, 0, 1, out=fractions)

    def normalise(self, volumes: torch.Tensor) -> torch.Tensor:
        """Give boxes the network's channels, mean and deviation.

        Args:
            volumes: float32 (B, C, d, h, w), as `scaled` gives them.

        Returns:
            float32 (B, channels, d, h, w).
        """
        if volumes.shape[1] != self.channels:
            volumes = volumes.expand(-1, self.channels, -1, -1, -1)
        mean, std = (_by_channel(values, volumes.device) for values in (self.mean, self.std))
        return (volumes - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """All attributes that decide numbers, as JSON values, for manifests and fingerprints."""
        values = {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }
        del values["divisor"], values["spacing"]  # rules for the user, not for the numbers
        return values


def _zscore(values: np.ndarray) -> np.ndarray:
    """As TorchIO's ZNormalization of what is above 0; a box without contrast becomes 0."""
    above = values[values > 0].astype(np.float64)
    deviation = above.std(ddof=1) if above.size > 1 else 0.0
    if deviation < SMALLEST_RANGE:
        return np.zeros_like(values, np.float32)
    return ((values - above.mean()) / deviation).astype(np.float32)


@lru_cache
def _by_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Numbers as (C, 1, 1, 1) on a device; kept, because a copy to a GPU would wait for it."""
    return torch.tensor(values, device=device).view(-1, 1, 1, 1)
