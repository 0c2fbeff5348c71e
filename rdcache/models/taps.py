"""What a network gives at its taps: the common base of all teacher networks, and tap shapes.

Canonical names: `s1`…`s4` (maps at strides 4, 8, 16, 32, or quarter depths of a ViT folded to its
grid), `tokens` (patch tokens), `pooled` (the embedding the model recommends), `logits`.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import nn

from rdcache.models.compiling import CompiledNetwork
from rdcache.store.spec import TapKind, TapSpec

KIND_BY_DIMENSIONS: dict[int, TapKind] = {1: "vector", 2: "tokens", 3: "map2d", 4: "map3d"}


class TapNetwork(nn.Module, ABC):
    """A network that yields its taps one after the other, in the order it computes them.

    Attributes:
        compilable: whether `torch.compile` sees what it does: an exported program is opaque.
    """

    compilable = True

    @property
    def backbone(self) -> nn.Module:
        """The part whose state dict a weight file is compared with."""
        return self

    def compiled(self) -> Callable[..., dict[str, torch.Tensor]]:
        """The forward pass as a compiled program; it is made at its first call."""
        return CompiledNetwork(self)

    @abstractmethod
    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (tap name, tensor (B, …)) for images float32 (B, 3, H, W), or for volumes float32
        (B, C, D, H, W) where the network takes these.
        """

    def forward(
        self, images: torch.Tensor, names: Collection[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """Run one forward pass, no further than the last tap that is asked for.

        Args:
            names: the taps to return; all of them by default.
        """
        if names is None:
            return dict(self.taps(images))
        found: dict[str, torch.Tensor] = {}
        for name, value in self.taps(images):
            if name in names:
                found[name] = value
            if len(found) == len(set(names)):
                break
        return {name: found[name] for name in names}


def tap_specs(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, TapSpec]:
    """Describe taps by the shapes of one sample, C first."""
    return {name: TapSpec(name, _kind(name, shape), shape) for name, shape in shapes.items()}


def _kind(name: str, shape: tuple[int, ...]) -> TapKind:
    # A black box may give the name `logits` to a map, of a segmentation for instance.
    return "logits" if name == "logits" and len(shape) == 1 else KIND_BY_DIMENSIONS[len(shape)]


def default_tap(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The tap that reprogramming starts from: the last map, else the last that are no logits."""
    maps = [name for name, shape in shapes.items() if len(shape) >= 3 and name != "s4_pre"]
    others = [name for name in shapes if name != "logits"]
    return (maps or others or list(shapes))[-1]


def finer_map(shapes: Mapping[str, tuple[int, ...]], default: str) -> str | None:
    """The coarsest map that is finer than the default tap, of several the one with most channels;
    None: the default tap is no map, or none is finer. Logits of positions are no map to start from.
    """
    if len(shapes.get(default, ())) < 3:
        return None
    fewest = math.prod(shapes[default][1:])
    finer = [
        (math.prod(sides), -channels, name)
        for name, (channels, *sides) in shapes.items()
        if len(sides) >= 2
        and math.prod(sides) > fewest
        and name.rpartition(".")[2] not in ("logits", "s4_pre")
    ]
    return min(finer)[-1] if finer else None


def measure_shapes(
    network: nn.Module, size: int | Sequence[int], channels: int = 3
) -> dict[str, tuple[int, ...]]:
    """Find the shape of every tap for one sample, without computing any number where possible.

    A network that does not run on tensors without data (some ask for values on the way) is run
    once on a blank image instead.

    Args:
        size: side of a square image in pixels, or the sides of a volume in voxels: (D, H, W).
    """
    sides = (size, size) if isinstance(size, int) else tuple(size)
    with torch.no_grad():
        try:
            outputs = _without_data(network)(torch.empty(1, channels, *sides, device="meta"))
        except (RuntimeError, NotImplementedError):
            outputs = network(torch.zeros(1, channels, *sides))
    return {name: tuple(value.shape[1:]) for name, value in outputs.items()}


def _without_data(network: nn.Module) -> nn.Module:
    """Copy a network but not its tensors: they have shapes only (the device `meta`)."""
    substitutes: dict[int, object] = {
        id(tensor): nn.Parameter(tensor.to("meta"), requires_grad=False)
        for tensor in network.parameters()
    }
    substitutes |= {id(tensor): tensor.to("meta") for tensor in network.buffers()}
    return copy.deepcopy(network, substitutes)
