"""A teacher's network with a classifier of its own, and perhaps an adapter inside."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from rdcache.models.adapters.base import Adapter
from rdcache.models.adapters.tower import Tower
from rdcache.models.taps import TapNetwork, default_tap
from rdcache.models.teacher import Teacher
from rdcache.models.timm_taps import TimmTaps

POOLED, LOGITS = "pooled", "logits"


@dataclass(frozen=True)
class Classified:
    """What an adapted network says of a batch.

    Attributes:
        features: (B, F), the classifier's input.
        logits: (B, C).
        similarity: see `Passed`.
    """

    features: torch.Tensor
    logits: torch.Tensor
    similarity: torch.Tensor | None = None


class AdaptedNetwork(TapNetwork):
    """A network whose last tap, `logits`, is its classifier's.

    Attributes:
        base: the teacher's own network.
        adapter: what was put into it, if anything was.
        head: the classifier.
    """

    def __init__(self, base: TapNetwork, adapter: Adapter | None, head: nn.Module) -> None:
        super().__init__()
        self.base, self.adapter, self.head = base, adapter, head

    @abstractmethod
    def classify(self, images: torch.Tensor) -> Classified:
        """Run images float32 (B, 3, H, W) to the end."""


class HeadedNetwork(AdaptedNetwork):
    """A network with a classifier on one of its taps; its own classifier is left out.

    Args:
        tap: the tap that is classified.
        positions: its dimensions that are averaged first: those of a map's positions.
    """

    def __init__(
        self, base: TapNetwork, head: nn.Module, tap: str, positions: tuple[int, ...]
    ) -> None:
        super().__init__(base, None, head)
        self.tap, self.positions = tap, positions
        self.compilable = base.compilable

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`."""
        logits = None
        for name, value in self.base.taps(images):
            if name != LOGITS:
                yield name, value
            if name == self.tap:
                logits = self.head(self._vector(value))
        assert logits is not None
        yield LOGITS, logits

    def classify(self, images: torch.Tensor) -> Classified:
        """See `AdaptedNetwork.classify`."""
        features = self._vector(self.base(images, [self.tap])[self.tap])
        return Classified(features, self.head(features))

    def _vector(self, value: torch.Tensor) -> torch.Tensor:
        return value.mean(dim=self.positions) if self.positions else value


class TowerNetwork(AdaptedNetwork):
    """A vision transformer that runs with an adapter.

    Its taps are those of the transformer; `pooled` is the classifier's input.
    """

    base: TimmTaps
    adapter: Adapter

    def __init__(self, base: TimmTaps, tower: Tower, adapter: Adapter, head: nn.Module) -> None:
        super().__init__(base, adapter, head)
        self.tower = tower

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`."""
        names = {number: name for name, number in self.base.depths.items()}
        tokens, grid = self.tower.embed(images)
        read: list[torch.Tensor] = []
        for number, passed in enumerate(self.adapter.walk(self.tower, tokens, grid)):
            tokens = passed.tokens
            read += [] if passed.read is None else [passed.read]
            if number in names:
                yield names[number], self.tower.as_map(tokens, grid)
        yield "tokens", self.tower.as_map(tokens, grid).flatten(2).transpose(1, 2)
        features = torch.cat([self.adapter.pooled(self.tower, tokens, grid), *read], dim=1)
        yield POOLED, features
        yield LOGITS, self.head(features)

    def classify(self, images: torch.Tensor) -> Classified:
        """See `AdaptedNetwork.classify`."""
        tokens, grid = self.tower.embed(images)
        passed = list(self.adapter.walk(self.tower, tokens, grid))
        pooled = self.adapter.pooled(self.tower, passed[-1].tokens, grid)
        features = torch.cat([pooled, *(it.read for it in passed if it.read is not None)], dim=1)
        return Classified(features, self.head(features), passed[-1].similarity)


def classified_tap(teacher: Teacher) -> tuple[str, tuple[int, ...], int]:
    """What of a teacher a classifier sees: its embedding, or else its default tap.

    Returns:
        The tap's name, the dimensions of a batch of it that are positions, and its width.
    """
    shapes = {name: tap.shape for name, tap in teacher.taps.items()}
    name = POOLED if POOLED in teacher.taps else default_tap(shapes)
    tap = teacher.taps[name]
    if tap.kind == "tokens":
        return name, (1,), tap.shape[1]
    return name, tuple(range(2, len(tap.shape) + 1)), tap.shape[0]
