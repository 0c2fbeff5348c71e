"""Numbers without their scale: logits without their mean and spread, vectors of length 1."""

from __future__ import annotations

import torch

from rdcache.errors import UsageError

LEAST_DEVIATION = 1e-7  # added to what is divided by


def standardised_logits(logits: torch.Tensor) -> torch.Tensor:
    """(z − mean z) / std z over the classes of each sample, std with C − 1 degrees of freedom.

    What is left is the order of the classes and their relative distances; how sure the network is,
    is gone (Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024). Of two
    classes nothing but the sign is left: the result is ±1/√2, and its gradient is 0. In float32 at
    least.

    Args:
        logits: (B, C).

    Raises:
        UsageError: another shape, or fewer than two classes.
    """
    if logits.ndim != 2 or logits.shape[1] < 2:
        raise UsageError(
            "logits to be standardised are (batch, class), of at least two classes.",
            logits=tuple(logits.shape),
        )
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    centred = logits - logits.mean(dim=1, keepdim=True)
    return centred / (logits.std(dim=1, keepdim=True) + LEAST_DEVIATION)
