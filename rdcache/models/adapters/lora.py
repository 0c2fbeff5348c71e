"""MeLo (Zhu et al., ISBI 2024): low-rank changes of the queries and values of every block.

    q = W_q·x + B_q·A_q·x,  v = W_v·x + B_v·A_v·x    A: rank × D, B: D × rank, B = 0 at the start

timm keeps W_q, W_k and W_v as one matrix. The package `peft` puts one low-rank pair beside a whole
layer: on that matrix it would change the keys too, with another number of parameters, and its
initial A would serve all three. Hence our own: a pair for each of the two slices, which is a few
lines, and can be added to them for good once it is trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from pydantic import Field
from torch import nn

from rdcache.models.adapters.base import Adapter, AdapterOptions, Passed
from rdcache.models.adapters.tower import Grid, Tower


class LoraOptions(AdapterOptions):
    """Options of LoRA."""

    rank: int = Field(default=4, gt=0, description="Rank of each change.")


class LowRank(nn.Module):
    """x ↦ B·A·x, zero at the start."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, inputs))
        self.up = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Change of tokens (…, inputs)."""
        return tokens @ self.down.T @ self.up.T

    def product(self) -> torch.Tensor:
        """B·A (outputs, inputs) in float64: its rounding does not depend on the machine."""
        return self.up.double() @ self.down.double()


class QueryValueChange(nn.Module):
    """The changes of one block's joined queries, keys and values; none of the keys."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        self.query = LowRank(inputs, outputs, rank)
        self.value = LowRank(inputs, outputs, rank)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """What is added to the projections (…, 3·outputs) of normed tokens."""
        query, value = self.query(tokens), self.value(tokens)
        return torch.cat([query, torch.zeros_like(query), value], dim=-1)


class Lora(Adapter):
    """A change for each block."""

    def __init__(self, tower: Tower, options: LoraOptions) -> None:
        super().__init__()
        changes = []
        for block in tower.blocks:
            joined = block.attn.qkv
            outputs = joined.out_features // 3
            changes.append(QueryValueChange(joined.in_features, outputs, options.rank))
        self.changes = nn.ModuleList(changes)

    def walk(self, tower: Tower, tokens: torch.Tensor, grid: Grid) -> Iterator[Passed]:
        """See `Adapter.walk`."""
        for number, change in enumerate(self.changes):
            tokens = tower.attend(number, tokens, grid, change=change)
            tokens = tower.transform(number, tokens)
            yield Passed(tokens)

    @torch.no_grad()
    def merge(self, tower: Tower) -> None:
        """Add the changes to the transformer's own matrices; it then computes the same by itself,
        in no more time than before.
        """
        for block, change in zip(tower.blocks, self.changes, strict=True):
            assert isinstance(change, QueryValueChange)
            weight = block.attn.qkv.weight
            query, _, value = weight.chunk(3)
            for slice_, low_rank in ((query, change.query), (value, change.value)):
                slice_.copy_(slice_.double() + low_rank.product())
