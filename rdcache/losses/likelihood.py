"""How likely a target is under a distribution that was predicted for it."""

from __future__ import annotations

import torch

from rdcache.errors import UsageError


def gaussian_nll(mean: torch.Tensor, variance: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean of ½·[(t − μ)²/σ² + log σ²]: −log likelihood under N(μ, σ²), without its ½·log 2π.

    The bound on mutual information of Ahn et al., "Variational Information Distillation for
    Knowledge Transfer", CVPR 2019, eq. 4; it may be negative. Computed in float32 at least, also
    under autocast.

    Args:
        mean: μ, of any shape.
        variance: σ² > 0, of a shape that broadcasts to it.
        target: t, of the same shape as μ.

    Returns:
        Scalar.

    Raises:
        UsageError: μ and t differ in shape.
    """
    if mean.shape != target.shape:
        raise UsageError(
            "a predicted mean and its target have one shape.",
            mean=tuple(mean.shape),
            target=tuple(target.shape),
        )
    dtype = torch.promote_types(mean.dtype, torch.float32)
    with torch.autocast(mean.device.type, enabled=False):
        variance = variance.to(dtype)
        error = (target.to(dtype) - mean.to(dtype)).square()
        return 0.5 * (error / variance + variance.log()).mean()
