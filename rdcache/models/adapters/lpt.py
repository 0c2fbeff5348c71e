"""Long-tailed prompt tuning (Dong et al., ICLR 2023): shared prompts, then prompts chosen by image.

Phase 1 trains deep prompts for all images. Phase 2 keeps them and trains a pool of groups of deep
prompts for the last blocks: the frozen network of phase 1 describes an image, the groups whose keys
are most like that description (cosine) are averaged and join the shared prompts. The losses of both
phases are the part of `rdcache.adaptation`.

Where a network has not twelve blocks, the groups serve its last half. Its own pooling stands for
the class token where there is none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import nn

from rdcache.models.adapters.base import Adapter, AdapterOptions, Passed
from rdcache.models.adapters.tower import Grid, Tower

SPREAD = 0.02  # standard deviation of initial prompts and keys


class LptOptions(AdapterOptions):
    """Options of long-tailed prompt tuning."""

    tokens: int = Field(default=10, gt=0, description="Shared prompts in each block.")
    pool: int = Field(default=20, gt=0, description="Groups of prompts to choose from.")
    top: int = Field(default=2, gt=0, description="Groups that are chosen for an image.")

    @model_validator(mode="after")
    def _enough(self) -> LptOptions:
        if self.top > self.pool:
            raise ValueError(f"top={self.top} groups cannot be chosen from a pool of {self.pool}")
        return self


class GroupPrompts(Adapter):
    """Shared prompts (L, p, D), a pool of groups (G, L/2, p, D), and the groups' keys (G, D).

    Attributes:
        grouped: whether groups join in (phase 2, and ever after).
    """

    needs_one_window = True
    stages = ("shared", "groups")

    def __init__(self, tower: Tower, options: LptOptions) -> None:
        super().__init__()
        depth, width = len(tower.blocks), tower.width
        self.top = options.top
        self.first = depth - depth // 2
        self.grouped = True
        self.shared = nn.Parameter(torch.empty(depth, options.tokens, width))
        self.groups = nn.Parameter(torch.empty(options.pool, depth // 2, options.tokens, width))
        self.keys = nn.Parameter(torch.empty(options.pool, tower.features))
        for tensor in (self.shared, self.groups, self.keys):
            nn.init.trunc_normal_(tensor, std=SPREAD)

    def begin_stage(self, name: str) -> list[nn.Parameter]:
        """See `Adapter.begin_stage`: the shared prompts alone, or the groups and their keys."""
        self.grouped = name == "groups"
        return [self.groups, self.keys] if self.grouped else [self.shared]

    def walk(self, tower: Tower, tokens: torch.Tensor, grid: Grid) -> Iterator[Passed]:
        """See `Adapter.walk`."""
        if not self.grouped:
            yield from self._run(tower, tokens, grid, None, None)
            return
        with torch.no_grad():
            (last,) = deque(self._run(tower, tokens, grid, None, None), maxlen=1)
            description = tower.pooled(last.tokens, grid)
        chosen, similarity = self.choose(description)
        yield from self._run(tower, tokens, grid, chosen, similarity)

    def choose(self, description: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean of the groups that suit an image.

        Args:
            description: (B, D), by the network of phase 1.

        Returns:
            Prompts (B, L/2, p, D), and the sum of the cosines of the chosen keys, (B,).
        """
        cosines = F.normalize(description, dim=1) @ F.normalize(self.keys, dim=1).T
        best, numbers = cosines.topk(self.top, dim=1)
        return self.groups[numbers].mean(dim=1), best.sum(dim=1)

    def _run(
        self,
        tower: Tower,
        tokens: torch.Tensor,
        grid: Grid,
        chosen: torch.Tensor | None,
        similarity: torch.Tensor | None,
    ) -> Iterator[Passed]:
        count = tokens.shape[1]
        for number, prompts in enumerate(self.shared):
            parts = [tokens, prompts.expand(len(tokens), -1, -1)]
            if chosen is not None and number >= self.first:
                parts.append(chosen[:, number - self.first].to(tokens.dtype))
            joined = torch.cat(parts, dim=1)
            joined = tower.transform(number, tower.attend(number, joined, grid))
            tokens = joined[:, :count]
            yield Passed(tokens, similarity=similarity)
