"""The KL of two predictions in two parts: how sure they are of the right class, and what they make
of the others.

With b = (p_y, 1 − p_y) and q the softened prediction among the classes other than y,

    KL(p_t ‖ p_s) = KL(b_t ‖ b_s) + (1 − p_t,y)·KL(q_t ‖ q_s)

(Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, eq. 5). They call the first KL TCKD and
the second, freed of its factor, NCKD.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.losses.softening import require_comparable


def decoupled_kl(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    target: torch.Tensor,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """τ²·KL(b_t ‖ b_s) and τ²·KL(q_t ‖ q_s), each averaged over the batch.

    With two classes the second is 0, as one class alone has nothing to say, and the first is the
    whole KL. Computed in float32 at least, also under autocast.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        target: int64 (B,), the right classes.
        temperature: τ > 0.

    Returns:
        Two scalars: TCKD and NCKD.

    Raises:
        UsageError: other shapes, fewer than two classes, or a temperature that is not positive.
    """
    require_comparable("decoupled_kl", student_logits, teacher_logits, temperature)
    if target.shape != student_logits.shape[:1] or student_logits.shape[1] < 2:
        raise UsageError(
            "decoupled_kl needs one right class a row, of at least two classes.",
            logits=tuple(student_logits.shape),
            target=tuple(target.shape),
        )
    with torch.autocast(student_logits.device.type, enabled=False):
        binary_student, others_student = _parts(student_logits, target, temperature)
        binary_teacher, others_teacher = _parts(teacher_logits, target, temperature)
        tckd = temperature**2 * _divergence(binary_student, binary_teacher)
        nckd = temperature**2 * _divergence(others_student, others_teacher)
    return tckd, nckd


def _parts(
    logits: torch.Tensor, target: torch.Tensor, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """log b (B, 2) and log q (B, C−1)."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    right = target[:, None]
    columns = torch.arange(logits.shape[1] - 1, device=logits.device)
    others = logits.gather(1, columns + (columns >= right))
    # log(1 − p_y) as a sum over the other classes: 1 − p_y itself is 0 for a teacher that is sure.
    binary = torch.cat([logits.gather(1, right), others.logsumexp(dim=1, keepdim=True)], dim=1)
    return F.log_softmax(binary, dim=1), F.log_softmax(others, dim=1)


def _divergence(log_student: torch.Tensor, log_teacher: torch.Tensor) -> torch.Tensor:
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1).mean()
