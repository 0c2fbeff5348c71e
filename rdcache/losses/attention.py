"""Attention transfer: where a network looks, as the energy of its channels at every position.

Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from rdcache.errors import UsageError


def attention_map(maps: torch.Tensor, power: float = 2.0) -> torch.Tensor:
    """Q/‖Q‖₂ with Q = mean_c |m_c|^p, flattened over positions.

    Computed in float32 at least, also under autocast. A map that is 0 everywhere stays 0.

    Args:
        maps: (B, C, *positions).
        power: p ≥ 1; the larger, the more the strongest channels count.

    Returns:
        (B, positions); of one position it is 1, whatever the map says.

    Raises:
        UsageError: another shape, or a power below 1, whose gradient at 0 is infinite.
    """
    if maps.ndim < 4:
        raise UsageError(
            "attention is a property of maps (batch, channel, *positions).",
            got=tuple(maps.shape),
        )
    if not power >= 1:
        raise UsageError("the power of attention maps must be at least 1.", power=power)
    with torch.autocast(maps.device.type, enabled=False):
        maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
        energy = maps.square() if power == 2 else maps.abs().pow(power)
        return F.normalize(energy.mean(dim=1).flatten(1), dim=1)


def attention_transfer(
    student: torch.Tensor, teacher: torch.Tensor, power: float = 2.0
) -> torch.Tensor:
    """Mean over samples and positions of (Q_s/‖Q_s‖ − Q_t/‖Q_t‖)².

    Neither changes when a map is scaled; channels need not be equally many.

    Args:
        student: (B, C_s, *positions).
        teacher: (B, C_t, *positions).
        power: p of `attention_map`.

    Returns:
        Scalar.

    Raises:
        UsageError: the maps differ in samples or positions.
    """
    if min(student.ndim, teacher.ndim) < 4 or _positions(student) != _positions(teacher):
        raise UsageError(
            "attention is compared at the same positions of the same samples.",
            student=tuple(student.shape),
            teacher=tuple(teacher.shape),
        )
    return (attention_map(student, power) - attention_map(teacher, power)).square().mean()


def _positions(maps: torch.Tensor) -> tuple[int, ...]:
    return maps.shape[0], *maps.shape[2:]
