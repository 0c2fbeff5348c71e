"""The KL of two classifiers' predictions for an image and for its parts, at several scales.

Maps of logits are cut into m×m cells for each scale m; each cell, averaged, is a prediction. A cell
whose teacher is right where the teacher of the whole image is wrong, or the other way round,
carries knowledge that complements the whole, and counts more (Wei et al., "Scale Decoupled
Distillation", CVPR 2024):

    L = (1/n)·Σ_cells w_cell·τ²·KL(p_t,cell ‖ p_s,cell)          n: cells of all scales
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.losses.divergence import kl_each


def scale_decoupled_kl(
    student_maps: torch.Tensor,
    teacher_maps: torch.Tensor,
    target: torch.Tensor,
    scales: Sequence[int] = (1, 2, 4),
    temperature: float = 1.0,
    complementary_weight: float = 2.0,
) -> torch.Tensor:
    """Average the weighted KL over cells and batch.

    With scale 1 alone it is `kl` of the averaged maps. Where a map's side is not a multiple of m,
    cells overlap by a position. Computed in float32 at least, also under autocast.

    Args:
        student_maps: logits (B, C, H, W).
        teacher_maps: logits (B, C, H', W').
        target: int64 (B,), the right classes.
        scales: m, none larger than the smallest side of both maps.
        temperature: τ > 0.
        complementary_weight: w of cells that complement the whole image; 1 for all others.

    Raises:
        UsageError: other shapes, or a scale that is finer than a map.
    """
    _check(student_maps, teacher_maps, target, scales)
    with torch.autocast(student_maps.device.type, enabled=False):
        student, teacher = (_cells(maps, scales) for maps in (student_maps, teacher_maps))
        cells = student.shape[1]
        divergence = kl_each(student.flatten(0, 1), teacher.flatten(0, 1), temperature)
        whole_is_right = teacher_maps.mean(dim=(2, 3)).argmax(dim=1) == target
        cell_is_right = teacher.argmax(dim=2) == target[:, None]
        complements = cell_is_right != whole_is_right[:, None]
        weights = 1 + (complementary_weight - 1) * complements.to(divergence.dtype)
        return (weights * divergence.view(-1, cells)).mean()


def _cells(maps: torch.Tensor, scales: Sequence[int]) -> torch.Tensor:
    """Logits of the cells of all scales: (B, C, H, W) → (B, cells, C)."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    pooled = [F.adaptive_avg_pool2d(maps, scale).flatten(2) for scale in scales]
    return torch.cat(pooled, dim=2).transpose(1, 2)


def _check(
    student: torch.Tensor, teacher: torch.Tensor, target: torch.Tensor, scales: Sequence[int]
) -> None:
    if student.ndim != 4 or teacher.ndim != 4 or student.shape[:2] != teacher.shape[:2]:
        raise UsageError(
            "scale_decoupled_kl compares two maps of logits (batch, class, height, width).",
            student=tuple(student.shape),
            teacher=tuple(teacher.shape),
        )
    if target.shape != student.shape[:1]:
        raise UsageError(
            "scale_decoupled_kl needs one right class a sample.",
            samples=len(student),
            target=tuple(target.shape),
        )
    side = min(*student.shape[2:], *teacher.shape[2:])
    if not scales or not all(1 <= scale <= side for scale in scales):
        raise UsageError(
            "a scale is at least 1, and no finer than the coarser of the two maps.",
            scales=", ".join(map(str, scales)) or "none",
            coarser_map=f"{side} positions a side",
        )
