"""What published networks of volumes have in common: an encoder's levels as taps, and axes.

Taps are named by stride: `s1`…`s4` at 4, 8, 16 and 32, as for images, and before them `stride1` and
`stride2`. Whatever way a network's makers laid their volumes, its maps come out along z, y, x.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from rdcache.models.taps import TapNetwork
from rdcache.models.weight_files import Tensors, without_prefix

NAMES = {1: "stride1", 2: "stride2", 4: "s1", 8: "s2", 16: "s3", 32: "s4"}
# Volumes are stored along z, y, x, which grow to the head (S), the front (A) and the right (R).
STORED = "SAR"
OPPOSITE = {"S": "I", "I": "S", "A": "P", "P": "A", "R": "L", "L": "R"}


class LevelTaps(TapNetwork):
    """An encoder whose levels are the taps; `pooled` is the mean of the last.

    Args:
        model: the encoder, under the names of its weight file.
        strides: of its levels, shallow to deep.
    """

    def __init__(self, model: nn.Module, strides: Sequence[int]) -> None:
        super().__init__()
        self.model: Any = model
        self.names = tuple(NAMES[stride] for stride in strides)

    @property
    def backbone(self) -> Any:
        """The encoder itself."""
        return self.model

    @abstractmethod
    def levels(self, volumes: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the map (B, C, d, h, w) of each level."""

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`; of volumes."""
        level = images
        for name, level in zip(self.names, self.levels(images), strict=True):
            yield name, level
        yield "pooled", level.mean((2, 3, 4))


class Oriented(TapNetwork):
    """A network that was trained on volumes along other axes, for volumes along z, y, x.

    Its maps are turned back, so that they lie on the volume as everything else does.

    Args:
        axes: where the axes of its input lead to, as in `RAS`: right, front and head.
    """

    def __init__(self, network: TapNetwork, axes: str) -> None:
        super().__init__()
        self.network = network
        self.order = tuple(_axis(letter) for letter in axes)
        self.mirrored = tuple(
            2 + place for place, letter in enumerate(axes) if letter not in STORED
        )

    @property
    def backbone(self) -> Any:
        """That of the network inside."""
        return self.network.backbone

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`; of volumes."""
        forth = (0, 1, *(2 + axis for axis in self.order))
        back = (0, 1, *(2 + self.order.index(axis) for axis in range(3)))
        turned = images.permute(forth).flip(self.mirrored)
        for name, value in self.network.taps(turned.contiguous()):
            if value.ndim == 5:
                value = value.flip(self.mirrored).permute(back)
            yield name, value


def below(tensors: Tensors, part: str = "") -> Tensors:
    """The tensors of one part of a network that was saved by parallel training or as a `backbone`,
    under the names that they have within the part.
    """
    tensors = without_prefix(tensors, "module.")
    inside = {name: it for name, it in tensors.items() if name.startswith("backbone.")}
    tensors = without_prefix(inside or tensors, "backbone.")
    return {name.removeprefix(part): it for name, it in tensors.items() if name.startswith(part)}


def _axis(letter: str) -> int:
    """The stored axis that leads to a side of the body, or away from it."""
    return STORED.index(letter if letter in STORED else OPPOSITE[letter])
