"""From the pixels of a view to the numbers a network was trained on.

Cutting the view out of the image is the data room's part; here values are only scaled, and channels
put in the order the network expects.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, Literal

import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its input.

    Attributes:
        size: side of the square input in pixels.
        mean: per channel, in fractions of full white (0–1), in the order of `channels`.
        std: as `mean`.
        interpolation: how views are resized to `size`.
        channels: order of the three channels at the network's input.
    """

    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    channels: Literal["rgb", "bgr"] = "rgb"

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Scale RGB images to the network's input, on the device they are on.

        Args:
            images: uint8 (B, H, W, 3), RGB.

        Returns:
            float32 (B, 3, H, W), channels in the order of `channels`.
        """
        if self.channels == "bgr":
            images = images.flip(-1)
        mean, std = (_by_channel(values, images.device) for values in (self.mean, self.std))
        return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """All attributes as JSON values, for manifests and fingerprints."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}


@lru_cache
def _by_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Three numbers as (3, 1, 1) on a device; kept, because a copy to a GPU would wait for all that
    it still has to compute.
    """
    return torch.tensor(values, device=device).view(3, 1, 1)
