"""Losses that compare two maps (B, C, H, W) of one shape, position by position.

All are computed in float32 at least, also under autocast, and give gradients to both arguments:
detach the one that should not move.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.losses.unit_length import unit_length

HCL_SIDES = (4, 2, 1)  # of the grids to which maps are pooled, beside their own
LEAST_VARIATION = 1e-5  # of a map's mean length that a position must differ from its mean by


def hcl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Hierarchical context loss: the mean squared error at several resolutions.

    (1·e_full + ½·e₄ + ¼·e₂ + ⅛·e₁) / (1 + ½ + ¼ + ⅛), e_l the error of the maps average-pooled to
    l × l. Grids that are not smaller than the maps are left out, without using up a halving (Chen
    et al., "Distilling Knowledge via Knowledge Review", CVPR 2021).

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H, W).

    Raises:
        UsageError: other shapes.
    """
    student, teacher = _maps(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        error, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
        for side in HCL_SIDES:
            if side < min(student.shape[2:]):
                weight /= 2
                total += weight
                difference = F.adaptive_avg_pool2d(student - teacher, side)  # pooling is linear
                error = error + weight * difference.square().mean()
        return error / total


def direction_error(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Σ over positions of ‖û_s − û_t‖², mean over the batch; û: channels scaled to length 1.

    A position where all channels are 0 stays so, without gradient. Each position adds 2 − 2·cos,
    so that the loss grows with their number, as in ScaleKD (Fan et al., NeurIPS 2024).

    Args:
        student: (B, C, H, W).
        teacher: (B, C, H, W).

    Raises:
        UsageError: other shapes.
    """
    student, teacher = _maps(student, teacher)
    with torch.autocast(student.device.type, enabled=False):
        difference = unit_length(student) - unit_length(teacher)
        return difference.square().sum() / len(difference)


def without_dc(maps: torch.Tensor) -> torch.Tensor:
    """Remove what is constant over positions: (B, C, H, W) less its mean over H and W.

    The same as leaving out the lowest coefficient of a discrete cosine transform (DCT-II) over H
    and W and going back, since that coefficient's wave is the constant one.

    What is left of a map that is constant is the rounding of its mean, and its directions are
    noise: a position shorter than 1e-5 of the map's root mean squared length becomes 0 exactly,
    without gradient.
    """
    varying = maps - maps.mean(dim=(2, 3), keepdim=True)
    lengths = maps.detach().norm(dim=1, keepdim=True)
    least = LEAST_VARIATION * lengths.square().mean(dim=(2, 3), keepdim=True).sqrt()
    return torch.where(varying.detach().norm(dim=1, keepdim=True) > least, varying, 0.0)


def _maps(student: torch.Tensor, teacher: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if student.ndim != 4 or student.shape != teacher.shape:
        raise UsageError(
            "maps are compared as two (sample, channel, height, width) tensors of one shape.",
            student=tuple(student.shape),
            teacher=tuple(teacher.shape),
        )
    dtype = torch.promote_types(student.dtype, torch.float32)
    return student.to(dtype), teacher.to(dtype)
