"""Visual query tuning (Tu et al., CVPR 2023): trained queries read from every block.

They are queries only: no other token looks at them, so that the transformer's own tokens stay what
they were. What each block makes of its queries is concatenated with the pooled features; as in the
authors' code, each of these parts is brought to length 1 first.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import nn

from rdcache.models.adapters.base import Adapter, AdapterOptions, Passed, uniform_tokens
from rdcache.models.adapters.tower import Grid, Tower


class VqtOptions(AdapterOptions):
    """Options of query tuning."""

    queries: int = Field(default=1, gt=0, description="Queries in each block.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Dropout of the queries.")


class QueryTuning(Adapter):
    """Queries (L, q, D), others in each block."""

    needs_one_window = True

    def __init__(self, tower: Tower, options: VqtOptions) -> None:
        super().__init__()
        self.queries = uniform_tokens(options.queries, tower, len(tower.blocks))
        self.dropout = nn.Dropout(options.dropout)
        self.read_width = self.queries.numel()

    def walk(self, tower: Tower, tokens: torch.Tensor, grid: Grid) -> Iterator[Passed]:
        """See `Adapter.walk`."""
        count = tokens.shape[1]
        for number, queries in enumerate(self.queries):
            own = self.dropout(queries.expand(len(tokens), -1, -1))  # each image drops others
            joined = torch.cat([tokens, own], dim=1)
            joined = tower.transform(number, tower.attend(number, joined, grid, keys=count))
            tokens, answers = joined[:, :count], joined[:, count:]
            yield Passed(tokens, F.normalize(answers.flatten(1), dim=1))

    def pooled(self, tower: Tower, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The pooled features, brought to length 1."""
        return F.normalize(tower.pooled(tokens, grid), dim=1)
