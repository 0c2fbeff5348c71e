"""Exponential moving averages of a module's weights."""

from __future__ import annotations

import copy
from itertools import chain

import torch
from torch import nn


class MovingAverage(nn.Module):
    """A slow copy of a module, in evaluation mode: what its weights were on average lately.

    Early on the average is shorter, min(decay, (1+t)/(10+t)) after t updates, so that a short run
    does not end near its random initialisation. Buffers (batch-norm statistics) are averaged too.

    Attributes:
        averaged: the copy.
        updates: how often it was moved; part of the state dict.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.averaged = copy.deepcopy(module).requires_grad_(False).eval()
        self.updates = 0

    def get_extra_state(self) -> dict[str, int]:
        """Return the number of updates, for the state dict."""
        return {"updates": self.updates}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the number of updates."""
        self.updates = state["updates"]

    def train(self, mode: bool = True) -> MovingAverage:
        """Stay in evaluation mode."""
        return self

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the copy a little towards the module."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        mine, theirs = _tensors(self.averaged), _tensors(module)
        floating = [i for i, tensor in enumerate(mine) if tensor.is_floating_point()]
        torch._foreach_lerp_([mine[i] for i in floating], [theirs[i] for i in floating], 1 - decay)
        counts = [i for i, tensor in enumerate(mine) if not tensor.is_floating_point()]
        if counts:
            torch._foreach_copy_([mine[i] for i in counts], [theirs[i] for i in counts])


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return list(chain(module.parameters(), module.buffers()))
