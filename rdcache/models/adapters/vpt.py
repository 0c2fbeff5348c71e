"""Visual prompt tuning (Jia et al., ECCV 2022): trained tokens beside those of the image.

Deep prompts are new in every block, and what a block makes of them is dropped; shallow ones enter
once and go along to the end. Where the paper puts them behind the class token, they stand last
here: attention does not know the difference. Without class token the patches are averaged as
before, the prompts are not among them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import nn

from rdcache.models.adapters.base import Adapter, AdapterOptions, Passed, uniform_tokens
from rdcache.models.adapters.tower import Grid, Tower


class VptOptions(AdapterOptions):
    """Options of prompt tuning."""

    tokens: int = Field(default=10, gt=0, description="Prompts in each block, or at the start.")
    dropout: float = Field(default=0.1, ge=0, lt=1, description="Dropout of the prompts.")


class DeepPrompts(Adapter):
    """Prompts (L, p, D), others in each block."""

    needs_one_window = True

    def __init__(self, tower: Tower, options: VptOptions) -> None:
        super().__init__()
        self.prompts = uniform_tokens(options.tokens, tower, len(tower.blocks))
        self.dropout = nn.Dropout(options.dropout)

    def walk(self, tower: Tower, tokens: torch.Tensor, grid: Grid) -> Iterator[Passed]:
        """See `Adapter.walk`."""
        count = tokens.shape[1]
        for number, prompts in enumerate(self.prompts):
            own = self.dropout(prompts.expand(len(tokens), -1, -1))  # each image drops others
            joined = torch.cat([tokens, own], dim=1)
            joined = tower.transform(number, tower.attend(number, joined, grid))
            tokens = joined[:, :count]
            yield Passed(tokens)


class ShallowPrompts(Adapter):
    """Prompts (p, D) that enter before the first block."""

    needs_one_window = True

    def __init__(self, tower: Tower, options: VptOptions) -> None:
        super().__init__()
        self.prompts = uniform_tokens(options.tokens, tower)
        self.dropout = nn.Dropout(options.dropout)

    def walk(self, tower: Tower, tokens: torch.Tensor, grid: Grid) -> Iterator[Passed]:
        """See `Adapter.walk`."""
        count = tokens.shape[1]
        prompts = self.dropout(self.prompts.expand(len(tokens), -1, -1))  # each image drops others
        joined = torch.cat([tokens, prompts], dim=1)
        for number in range(len(tower.blocks)):
            joined = tower.transform(number, tower.attend(number, joined, grid))
            yield Passed(joined[:, :count])
