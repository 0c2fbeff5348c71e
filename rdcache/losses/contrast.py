"""Noise-contrastive estimation: tell the pair that belongs together from pairs that do not.

Gutmann and Hyvärinen, AISTATS 2010, in the form of Tian et al., "Contrastive Representation
Distillation", ICLR 2020, eq. 18.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from rdcache.errors import UsageError


def noise_contrast(
    positive: torch.Tensor,
    negatives: torch.Tensor,
    noise: float,
    counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """−mean_b [ log P⁺/(P⁺ + ν) + Σ_j c_j·log ν/(P_j + ν) ], with ν = K·P_n.

    Computed from logarithms, so that no P overflows, in float32 at least, also under autocast.

    Args:
        positive: (B,), log P⁺ of the pair that belongs together.
        negatives: (B, M), log P of pairs that do not.
        noise: ν > 0: number K of noise samples times the probability of each, 1/n of n samples.
        counts: (B, M), how often each negative was drawn, on average perhaps; 1 by default.

    Returns:
        Scalar.

    Raises:
        UsageError: wrong shapes, or ν is not positive.
    """
    if positive.ndim != 1 or negatives.ndim != 2 or len(positive) != len(negatives):
        raise UsageError(
            "each sample has one positive pair and a row of negative ones.",
            positive=tuple(positive.shape),
            negatives=tuple(negatives.shape),
        )
    if counts is not None and counts.shape != negatives.shape:
        raise UsageError(
            "there is a count for each negative pair.",
            counts=tuple(counts.shape),
            negatives=tuple(negatives.shape),
        )
    if not noise > 0:
        raise UsageError("the noise must be positive.", noise=noise)
    dtype = torch.promote_types(positive.dtype, torch.float32)
    with torch.autocast(positive.device.type, enabled=False):
        log_noise = math.log(noise)
        kept = F.logsigmoid(positive.to(dtype) - log_noise)
        rejected = F.logsigmoid(log_noise - negatives.to(dtype))
        if counts is not None:
            rejected = rejected * counts.to(dtype)
        return -(kept + rejected.sum(dim=1)).mean()
