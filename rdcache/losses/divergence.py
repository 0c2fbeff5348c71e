"""Divergences between two classifiers' predictions."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from rdcache.errors import UsageError


def kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """τ²·KL(p_t ‖ p_s): how badly the student's softened prediction approximates the teacher's.

    The teacher is the target distribution, as in Hinton et al. (2015); τ² keeps the size of the
    gradient independent of the temperature. Computed in float32 at least, also under autocast.
    Gradients go to both arguments: detach the one that should not move.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: τ > 0; larger is softer.

    Returns:
        Scalar, the mean over the batch.

    Raises:
        UsageError: the shapes differ, or the temperature is not positive.
    """
    if student_logits.shape != teacher_logits.shape or student_logits.ndim != 2:
        raise UsageError(
            "kl compares two (batch, class) tensors of one shape.",
            student=tuple(student_logits.shape),
            teacher=tuple(teacher_logits.shape),
        )
    if not temperature > 0:
        raise UsageError("the temperature must be positive.", temperature=temperature)
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    with torch.autocast(student_logits.device.type, enabled=False):
        log_student = F.log_softmax(student_logits.to(dtype) / temperature, dim=1)
        log_teacher = F.log_softmax(teacher_logits.to(dtype) / temperature, dim=1)
        divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2
