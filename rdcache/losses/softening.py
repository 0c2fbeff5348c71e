"""Softened predictions, and what every comparison of two classifiers' logits refuses."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from rdcache.errors import UsageError


def require_comparable(
    loss: str,
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float,
    positions: bool = False,
) -> None:
    """Refuse logits that are not two (B, C) tensors of one shape, and temperatures that are not
    positive.

    Args:
        positions: logits are of positions, (B, C, *positions).

    Raises:
        UsageError: naming the loss, and what was given.
    """
    axes = student_logits.ndim > 2 if positions else student_logits.ndim == 2
    if student_logits.shape != teacher_logits.shape or not axes:
        what = "(batch, class, *positions)" if positions else "(batch, class)"
        raise UsageError(
            f"{loss} compares two {what} tensors of one shape.",
            student=tuple(student_logits.shape),
            teacher=tuple(teacher_logits.shape),
        )
    if not temperature > 0:
        raise UsageError("the temperature must be positive.", temperature=temperature)


def log_softened(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(z/τ) over dimension 1, in float32 at least."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return F.log_softmax(logits.to(dtype) / temperature, dim=1)
