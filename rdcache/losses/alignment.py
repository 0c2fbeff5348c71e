"""Alignment of two classifiers beyond single predictions: which classes, and which samples of a
batch, are alike to them.

With P the (B, C) softened predictions (Jin et al., "Multi-Level Logit Distillation", CVPR 2023),

    class level   (1/C)·Σ_c m_c·Σ_c' (P_tᵀP_t − P_sᵀP_s)²_cc'
    batch level   (1/B)·Σ_i m_i·Σ_j  (P_tP_tᵀ − P_sP_sᵀ)²_ij

m weighs rows, 1 for all unless it is given.
"""

from __future__ import annotations

import torch

from rdcache.errors import UsageError
from rdcache.losses.softening import log_softened, require_comparable


def class_alignment(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float = 1.0,
    row_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Squared difference of the classes' Gram matrices, which are sums over the batch: the value
    grows with (B/C)². Computed in float32 at least, also under autocast.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: τ > 0; there is no factor τ² here.
        row_weights: m, (C,).

    Raises:
        UsageError: other shapes, or a temperature that is not positive.
    """
    require_comparable("class_alignment", student_logits, teacher_logits, temperature)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = (
            log_softened(logits, temperature).exp().T for logits in (student_logits, teacher_logits)
        )
        return _gram_difference("class_alignment", student, teacher, row_weights)


def batch_alignment(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    temperature: float = 1.0,
    row_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Squared difference of the samples' Gram matrices; else as `class_alignment`, m being (B,)."""
    require_comparable("batch_alignment", student_logits, teacher_logits, temperature)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = (
            log_softened(logits, temperature).exp() for logits in (student_logits, teacher_logits)
        )
        return _gram_difference("batch_alignment", student, teacher, row_weights)


def _gram_difference(
    loss: str, student: torch.Tensor, teacher: torch.Tensor, row_weights: torch.Tensor | None
) -> torch.Tensor:
    """(1/n)·Σ_i m_i·Σ_j (XXᵀ − YYᵀ)²_ij of two (n, d) matrices."""
    rows = (teacher @ teacher.T - student @ student.T).square().sum(dim=1)
    if row_weights is None:
        return rows.mean()
    if row_weights.shape != rows.shape:
        raise UsageError(
            f"{loss} needs a weight for each row.",
            rows=len(rows),
            weights=tuple(row_weights.shape),
        )
    return (row_weights * rows).mean()
