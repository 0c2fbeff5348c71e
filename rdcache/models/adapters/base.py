"""What every adapter is: small tensors of its own, and how a frozen transformer runs with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from rdcache.models.adapters.tower import Grid, Tower


class AdapterOptions(BaseModel):
    """Base of the methods' options. Field descriptions are their help texts."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Passed(NamedTuple):
    """What there is after a block.

    Attributes:
        tokens: (B, N, D), prefix and patches, as the next block gets them.
        read: (B, F), what the adapter itself has read there for the classifier, if it does that.
        similarity: (B,), how well the keys that the adapter chose match the images, if it chooses.
    """

    tokens: torch.Tensor
    read: torch.Tensor | None = None
    similarity: torch.Tensor | None = None


class Adapter(nn.Module, ABC):
    """Trained tensors beside a frozen transformer.

    Attributes:
        read_width: how many numbers it adds to the classifier's input, beside the pooled ones.
        needs_one_window: whether it adds tokens, for which attention must be over all patches.
        stages: names of the parts of its training, in order.
    """

    read_width = 0
    needs_one_window = False
    stages: tuple[str, ...] = ("adapter",)

    def begin_stage(self, name: str) -> list[nn.Parameter]:
        """Make ready for a part of the training, and say what is trained in it."""
        return list(self.parameters())

    @abstractmethod
    def walk(self, tower: Tower, tokens: torch.Tensor, grid: Grid) -> Iterator[Passed]:
        """Run the blocks on embedded tokens, one after the other, and yield after each."""

    def pooled(self, tower: Tower, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The classifier's input, or its first part, from the last block's tokens."""
        return tower.pooled(tokens, grid)


def uniform_tokens(count: int, tower: Tower, *before: int) -> nn.Parameter:
    """Tokens (*before, count, D) drawn as VPT draws its prompts, from ±√(6 / (3·p² + D))."""
    bound = (6 / (tower.patch_values + tower.width)) ** 0.5
    return nn.Parameter(torch.empty(*before, count, tower.width).uniform_(-bound, bound))
