"""Correlation of two classifiers' predictions: whether they agree up to scale and shift.

With ρ Pearson's coefficient and Y the (B, C) softened predictions (Huang et al., "Knowledge
Distillation from A Stronger Teacher", NeurIPS 2022, eqs. 9 and 10),

    inter-class   1 − mean over samples i of ρ(Y_s[i, :], Y_t[i, :])
    intra-class   1 − mean over classes j of ρ(Y_s[:, j], Y_t[:, j])
"""

from __future__ import annotations

import torch

from rdcache.losses.softening import log_softened, require_comparable

# Squared spread below which a row of probabilities is constant: what float32 leaves of one.
LEAST_SPREAD = 1e-12


def inter_class_relation(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """τ²·(1 − ρ) over the classes of each sample, averaged over samples.

    Of two classes it says nothing: two numbers are always perfectly correlated, ρ = ±1 is the sign
    of agreement, and its gradient is 0. Computed in float32 at least, also under autocast. A sample
    whose predictions are all equal on one side counts as ρ = 0, without gradient.

    Args:
        student_logits: (B, C).
        teacher_logits: (B, C).
        temperature: τ > 0.

    Raises:
        UsageError: the shapes differ, or the temperature is not positive.
    """
    require_comparable("inter_class_relation", student_logits, teacher_logits, temperature)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = (
            log_softened(logits, temperature).exp() for logits in (student_logits, teacher_logits)
        )
        return temperature**2 * (1 - _pearson(student, teacher).mean())


def intra_class_relation(
    student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """τ²·(1 − ρ) over the samples of each class, averaged over classes; else as
    `inter_class_relation`. Of two samples it says nothing, for the same reason.
    """
    require_comparable("intra_class_relation", student_logits, teacher_logits, temperature)
    with torch.autocast(student_logits.device.type, enabled=False):
        student, teacher = (
            log_softened(logits, temperature).exp().T for logits in (student_logits, teacher_logits)
        )
        return temperature**2 * (1 - _pearson(student, teacher).mean())


def _pearson(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """ρ of each row (n, m) → (n,)."""
    x, y = x - x.mean(dim=1, keepdim=True), y - y.mean(dim=1, keepdim=True)
    spread_x, spread_y = x.square().sum(dim=1), y.square().sum(dim=1)
    defined = (spread_x > LEAST_SPREAD) & (spread_y > LEAST_SPREAD)
    # Replaced before the root, not after it: the gradient of √0 would be infinite.
    norms = torch.where(defined, spread_x * spread_y, torch.ones_like(spread_x)).sqrt()
    return torch.where(defined, (x * y).sum(dim=1) / norms, torch.zeros_like(norms))
