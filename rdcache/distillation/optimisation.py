"""AdamW and its learning rate over time, as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from rdcache.errors import UsageError

# The code lineage of the paper trains 240 epochs and divides by 10 at these.
STEP_FRACTIONS = (150 / 240, 180 / 240, 210 / 240)
LONGEST_WARMUP = 0.2
ONECYCLE_RISE, ONECYCLE_START, ONECYCLE_END = 0.3, 1 / 25, 1e-4


def create_optimiser(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float
) -> torch.optim.AdamW:
    """AdamW over parameters, each once; vectors (biases, norms) without weight decay."""
    unique = list(dict.fromkeys(parameters))
    groups = [
        {"params": [p for p in unique if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in unique if p.ndim <= 1], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in ("cpu", "cuda") for parameter in unique)
    return torch.optim.AdamW(groups, lr=lr, fused=fused)


def learning_rate(
    schedule: str, step: int, steps: int, warmup_steps: float, largest: float
) -> float:
    """The rate before step `step` of `steps`.

    Args:
        schedule: `cosine` to 0, `step` ×0.1 at 150, 180, 210 of 240 parts, `constant`, or
            `onecycle` (a cosine up over the first 30 %, another down).
        warmup_steps: steps of linear rise, at most a fifth of all; one-cycle has none.
        largest: the rate at its peak.

    Raises:
        UsageError: no such schedule.
    """
    share = step / steps
    if schedule == "onecycle":
        return largest * _onecycle(share)
    warmup = min(warmup_steps, LONGEST_WARMUP * steps)
    if step < warmup:
        return largest * (step + 1) / (warmup + 1)
    if schedule == "cosine":
        passed = (step - warmup) / max(steps - warmup, 1)
        return largest * (1 + math.cos(math.pi * passed)) / 2
    if schedule == "step":
        drops = sum(share >= fraction for fraction in STEP_FRACTIONS)
        return float(largest * 0.1**drops)
    if schedule == "constant":
        return largest
    raise UsageError(f"there is no schedule named {schedule!r}.")


def _onecycle(share: float) -> float:
    if share < ONECYCLE_RISE:
        return _cosine_between(ONECYCLE_START, 1.0, share / ONECYCLE_RISE)
    return _cosine_between(1.0, ONECYCLE_END, (share - ONECYCLE_RISE) / (1 - ONECYCLE_RISE))


def _cosine_between(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
