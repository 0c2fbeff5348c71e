"""AdaptFormer (Chen et al., NeurIPS 2022): a bottleneck beside the MLP of every block.

    x ↦ x + MLP(LN(x)) + s·Up(ReLU(Down(x)))    Down: D → 64, Up: 64 → D, both with bias

Up is zero at the start, so that the network begins as what it was.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from rdcache.models.adapters.base import Adapter, AdapterOptions, Passed
from rdcache.models.adapters.tower import Grid, Tower


class AdaptFormerOptions(AdapterOptions):
    """Options of AdaptFormer."""

    bottleneck: int = Field(default=64, gt=0, description="Width of the bottlenecks.")
    scale: float = Field(default=0.1, gt=0, description="Factor of what a bottleneck adds.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Dropout within the bottlenecks.")


class Bottleneck(nn.Module):
    """x ↦ s·Up(ReLU(Down(x))), zero at the start."""

    def __init__(self, width: int, options: AdaptFormerOptions) -> None:
        super().__init__()
        self.scale, self.dropout = options.scale, options.dropout
        self.down = nn.Linear(width, options.bottleneck)
        self.up = nn.Linear(options.bottleneck, width)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """What is added to tokens (…, D)."""
        hidden = F.dropout(F.relu(self.down(tokens)), self.dropout, self.training)
        return self.scale * self.up(hidden)


class AdaptFormer(Adapter):
    """A bottleneck for each block."""

    def __init__(self, tower: Tower, options: AdaptFormerOptions) -> None:
        super().__init__()
        self.bottlenecks = nn.ModuleList(Bottleneck(tower.width, options) for _ in tower.blocks)

    def walk(self, tower: Tower, tokens: torch.Tensor, grid: Grid) -> Iterator[Passed]:
        """See `Adapter.walk`."""
        for number, bottleneck in enumerate(self.bottlenecks):
            tokens = tower.attend(number, tokens, grid)
            tokens = tower.transform(number, tokens) + bottleneck(tokens)
            yield Passed(tokens)
