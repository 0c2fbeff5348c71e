"""From the pixels of a view to the numbers a network was trained on.

Cutting the view out of the image is the data room's part; here values are only scaled, and channels
put in the order the network expects. Volumes are the part of `volume_preprocessing.py`.
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
SMALLEST_RANGE = 1e-8  # of a blank image, which becomes 0 everywhere


@dataclass(frozen=True)
class Preprocessing:
    """What a network expects of its input.

    Attributes:
        size: side of the square input in pixels.
        mean: per channel, in fractions of full white (0–1), in the order of `channels`.
        std: as `mean`.
        interpolation: how views are resized to `size`.
        channels: order of the three channels at the network's input.
        scaling: what 0 and 1 are before `mean` and `std`: black and full white (`fixed`), or the
            darkest and brightest number of each image (`minmax`).
    """

    size: int = 224
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    channels: Literal["rgb", "bgr"] = "rgb"
    scaling: Literal["fixed", "minmax"] = "fixed"

    @property
    def dimensions(self) -> int:
        """Of what the network looks at: images."""
        return 2

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one image at the network's input: (3, size, size)."""
        return (3, self.size, self.size)

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """Scale RGB images to the network's input, on the device they are on.

        Args:
            images: uint8 (B, H, W, 3), RGB.

        Returns:
            float32 (B, 3, H, W), channels in the order of `channels`.
        """
        return self.standardise(images.permute(0, 3, 1, 2).float() / 255)

    def standardise(self, images: torch.Tensor) -> torch.Tensor:
        """As `normalise`, for float32 images (B, 3, H, W), RGB in 0 (black) to 1 (white)."""
        if self.channels == "bgr":
            images = images.flip(1)
        if self.scaling == "minmax":
            low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
            images = (images - low) / (high - low).clamp_min(SMALLEST_RANGE)
        mean, std = (_by_channel(values, images.device) for values in (self.mean, self.std))
        return (images - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """All attributes as JSON values, for manifests and fingerprints; `scaling` where it is not
        the usual one, so that the fingerprints of older stores remain.
        """
        values = {**asdict(self), "mean": list(self.mean), "std": list(self.std)}
        if self.scaling == "fixed":
            del values["scaling"]
        return values


@lru_cache
def _by_channel(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """Three numbers as (3, 1, 1) on a device; kept, because a copy to a GPU would wait for all that
    it still has to compute.
    """
    return torch.tensor(values, device=device).view(3, 1, 1)
