"""Divergences between two classifiers' predictions."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from rdcache.errors import UsageError
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


def binary_kl(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """τ²·KL of every class by itself, present or not, as where several may be present at once.

    With p = σ(z/τ), the mean over samples and classes of
    τ²·[p_t·log(p_t/p_s) + (1 − p_t)·log((1 − p_t)/(1 − p_s))]: the scale of a binary cross-entropy
    that is averaged over classes, whatever their number. Computed in float32 at least, also under
    autocast. Gradients go to both arguments.

    Args:
        student_logits: (B, L).
        teacher_logits: (B, L).
        temperature: τ > 0; larger is softer.

    Returns:
        Scalar.

    Raises:
        UsageError: the shapes differ, or the temperature is not positive.
    """
    require_comparable("binary_kl", student_logits, teacher_logits, temperature)
    with torch.autocast(student_logits.device.type, enabled=False):
        dtype = torch.promote_types(student_logits.dtype, torch.float32)
        student, teacher = (it.to(dtype) / temperature for it in (student_logits, teacher_logits))
        here, absent = F.logsigmoid(teacher), F.logsigmoid(-teacher)
        each = here.exp() * (here - F.logsigmoid(student))
        each = each + absent.exp() * (absent - F.logsigmoid(-student))
        return temperature**2 * each.mean()


def position_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float = 1.0,
    foreground: torch.Tensor | None = None,
) -> torch.Tensor:
    """τ²·KL(p_t ‖ p_s) of every position, averaged over positions; see `kl`.

    It does not depend on the size of the image. Background may be nearly all of one; with
    `foreground` the result is ½·(mean over its positions) + ½·(mean over the others), or the mean
    of the one kind that there is.

    Args:
        student_logits: (B, C, *positions).
        teacher_logits: (B, C, *positions).
        temperature: τ > 0; larger is softer.
        foreground: bool (B, *positions).

    Returns:
        Scalar.

    Raises:
        UsageError: the shapes do not go together, or the temperature is not positive.
    """
    require_comparable("position_kl", student_logits, teacher_logits, temperature, positions=True)
    with torch.autocast(student_logits.device.type, enabled=False):
        log_student = log_softened(student_logits, temperature)
        log_teacher = log_softened(teacher_logits, temperature)
        each = temperature**2 * (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1)
        if foreground is None:
            return each.mean()
        if foreground.shape != each.shape:
            raise UsageError(
                "there is one position of the foreground for each of the logits.",
                logits=tuple(each.shape),
                foreground=tuple(foreground.shape),
            )
        return (each * balanced_shares(foreground).to(each.dtype)).sum()


def balanced_shares(foreground: torch.Tensor) -> torch.Tensor:
    """Weights that sum to 1, half of it on foreground and half on the rest: float32, as shaped.

    Where there is one kind alone, it has all of it.
    """
    inside = foreground.float()
    shares = [kind / kind.sum().clamp_min(1) for kind in (inside, 1 - inside)]
    weights = shares[0] + shares[1]
    return weights / weights.sum()
