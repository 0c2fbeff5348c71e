"""Divergences between two classifiers' predictions."""

from __future__ import annotations

import torch

from rdcache.losses.softening import log_softened, require_comparable


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
    return kl_each(student_logits, teacher_logits, temperature).mean()


def kl_each(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """As `kl`, of each row by itself: (B,)."""
    require_comparable("kl", student_logits, teacher_logits, temperature)
    with torch.autocast(student_logits.device.type, enabled=False):
        log_student = log_softened(student_logits, temperature)
        log_teacher = log_softened(teacher_logits, temperature)
        return temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)
