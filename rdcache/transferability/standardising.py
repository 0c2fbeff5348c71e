"""What channels are divided by when they are standardised."""

from __future__ import annotations

import torch

LEAST_SPREAD = 0.05  # smallest standard deviation divided by, in medians over varying channels


def divisors(std: torch.Tensor) -> torch.Tensor:
    """Raise the standard deviations (C,) of hardly varying channels to 5 % of the median.

    A channel that hardly varies in training must not blow up what it says later. Where none
    varies, all are divided by 1.
    """
    varying = std[std > 0]
    if not len(varying):
        return torch.ones_like(std)
    return std.clamp_min(LEAST_SPREAD * varying.median())
