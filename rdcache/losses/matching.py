"""Matching several predictions of one target at once.

Liu et al., "NORM: Knowledge Distillation via N-to-One Representation Matching", ICLR 2023.
"""

from __future__ import annotations

import torch

from rdcache.errors import UsageError


def many_to_one(predictions: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Σ_{n=1}^N mean (p_n − t)², with p_n the n-th group of C channels of N·C.

    Computed in float32 at least, also under autocast.

    Args:
        predictions: (B, N·C, H, W).
        target: (B, C, H, W).

    Returns:
        Scalar: N times the mean squared error of all predictions.

    Raises:
        UsageError: the shapes do not go together.
    """
    copies, rest = divmod(predictions.shape[1], target.shape[1])
    if rest or not copies or predictions.shape[2:] != target.shape[2:]:
        raise UsageError(
            "predictions have a multiple of their target's channels, at its positions.",
            predictions=tuple(predictions.shape),
            target=tuple(target.shape),
        )
    dtype = torch.promote_types(predictions.dtype, torch.float32)
    groups = predictions.to(dtype).unflatten(1, (copies, -1))
    return copies * (groups - target.to(dtype).unsqueeze(1)).square().mean()
