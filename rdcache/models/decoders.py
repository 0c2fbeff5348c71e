"""From the maps of an encoder's stages back to every position of its input.

Written here rather than taken from MONAI or segmentation-models-pytorch: for students of images,
importing MONAI takes longer (8 s of processor time) than building one a hundred times over, and the
other would be one more dependency for the thirty lines of a U-Net's decoder, which has not changed
since 2015. What `UNetDecoder` computes is what MONAI's class of that name does; a test compares
them. Students of volumes are MONAI's own (`volume_students.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F

from rdcache.models.backbones import Stages

# Few channels where there are many positions: this half would cost many times the encoder else.
WIDTHS = (96, 64, 32, 16, 16)


class Decoder(nn.Module, ABC):
    """Maps of stages in, one map with as many positions as the encoder's input out.

    Attributes:
        width: channels of that map.
        sees: stages whose maps it is computed from, deep to shallow.
    """

    width: int
    sees: tuple[str, ...]

    @abstractmethod
    def forward(self, maps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Compute (B, width, *spatial) from the maps of at least the stages that it sees."""


class UpBlock(nn.Module):
    """Join a map, brought to the skip's size, and the skip; then two convolutions."""

    def __init__(self, channels: int, skip_channels: int, width: int, scale: int = 2) -> None:
        super().__init__()
        self.scale = scale
        self.convolutions = nn.Sequential(
            *_convolution(channels + skip_channels, width), *_convolution(width, width)
        )

    def forward(self, x: torch.Tensor, skip: torch.Tensor | None) -> torch.Tensor:
        """Compute (B, width, H·scale, W·scale)."""
        if self.scale > 1:
            x = F.interpolate(x, scale_factor=self.scale, mode="nearest")
        return self.convolutions(x if skip is None else torch.cat((skip, x), dim=1))


class UNetDecoder(Decoder):
    """The decoder of a U-Net (Ronneberger et al., MICCAI 2015): twice the size at each block, and
    the encoder's map of that size joined to it.

    Args:
        stages: the encoder's, name → (channels, stride).
        sees: the deepest of them, then the one of half its stride, and so on.
    """

    def __init__(self, stages: Stages, sees: tuple[str, ...]) -> None:
        super().__init__()
        self.sees = sees
        channels = stages[sees[0]][0]
        blocks = []
        for number, width in enumerate(WIDTHS):
            skip = stages[sees[number + 1]][0] if number + 1 < len(sees) else 0
            blocks.append(UpBlock(channels, skip, width))
            channels = width
        self.blocks = nn.ModuleList(blocks)
        self.width = channels

    def forward(self, maps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Decoder.forward`."""
        x = maps[self.sees[0]]
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, maps[self.sees[number]] if number < len(self.sees) else None)
        return x


class PyramidDecoder(Decoder):
    """A U-Net's decoder on a network of equal stages: shallower ones are enlarged to its skips.

    s4 and s3 are joined at stride 16, s2 at 8 and s1 at 4, enlarged by transposed convolutions as
    in UNETR (Hatamizadeh et al., WACV 2022) and in the simple feature pyramid of ViTDet (Li et al.,
    ECCV 2022).

    Args:
        channels: of every stage.
    """

    sees = ("s4", "s3", "s2", "s1")

    def __init__(self, channels: int) -> None:
        super().__init__()
        middle, shallow = WIDTHS[1:3]
        self.enlarge = nn.ModuleDict(
            {
                "s2": nn.Sequential(*_enlargement(channels, middle)),
                "s1": nn.Sequential(
                    *_enlargement(channels, middle), *_enlargement(middle, shallow)
                ),
            }
        )
        skips = (channels, middle, shallow, 0, 0)
        blocks = []
        for number, (skip, width) in enumerate(zip(skips, WIDTHS, strict=True)):
            blocks.append(UpBlock(channels, skip, width, scale=1 if number == 0 else 2))
            channels = width
        self.blocks = nn.ModuleList(blocks)
        self.width = channels

    def forward(self, maps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Decoder.forward`."""
        skips = [maps["s3"], self.enlarge["s2"](maps["s2"]), self.enlarge["s1"](maps["s1"])]
        x = maps["s4"]
        for number, block in enumerate(self.blocks):
            x = block(x, skips[number] if number < len(skips) else None)
        return x


def _convolution(channels: int, width: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )


def _enlargement(channels: int, width: int) -> tuple[nn.Module, ...]:
    """Twice the size."""
    return (
        nn.ConvTranspose2d(channels, width, kernel_size=2, stride=2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    )
