"""Cross-layer distillation with attention: each layer of the student learns from all layers of the
teacher, and most from those that see the samples of the batch as it does.

Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rdcache.errors import UsageError


def similarity_rows(maps: torch.Tensor) -> torch.Tensor:
    """How alike each sample of a batch is to every other: M·Mᵀ/d of the flattened maps.

    The authors do not divide by d; it only keeps the numbers near 1. Computed in float32 at least,
    also under autocast.

    Args:
        maps: (B, …), of d elements a sample.

    Returns:
        (B, B), row i for sample i.
    """
    with torch.autocast(maps.device.type, enabled=False):
        rows = maps.to(torch.promote_types(maps.dtype, torch.float32)).flatten(1)
        return rows @ rows.T / rows.shape[1]


def semantic_calibration(
    attention: torch.Tensor,
    regressed: Sequence[Sequence[torch.Tensor]],
    targets: Sequence[Sequence[torch.Tensor]],
) -> torch.Tensor:
    """Σ_b Σ_s Σ_t a_bst·mean (r_st(m_s)_b − (m_t)_b)² / (B·S), eqs. 4 and 5.

    Computed in float32 at least, also under autocast.

    Args:
        attention: (B, S, T), over T it sums to 1.
        regressed: S rows of T maps (B, C_t, H, W), the student's led to the teacher's channels.
        targets: the same of the teacher; the shape of each is that of its counterpart.

    Returns:
        Scalar.

    Raises:
        UsageError: the shapes do not go together.
    """
    errors = []
    for mine, theirs in zip(regressed, targets, strict=True):
        errors.append([_mean_error(m, t) for m, t in zip(mine, theirs, strict=True)])
    table = torch.stack([torch.stack(row, dim=1) for row in errors], dim=1)
    if attention.shape != table.shape:
        raise UsageError(
            "attention is given for each sample, student layer and teacher layer.",
            attention=tuple(attention.shape),
            errors=tuple(table.shape),
        )
    batch, layers, _ = table.shape
    return (attention.to(table.dtype) * table).sum() / (batch * layers)


def _mean_error(mine: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """Squared error of each sample, (B,)."""
    if mine.shape != theirs.shape:
        raise UsageError(
            "a regressed map and its target have one shape.",
            regressed=tuple(mine.shape),
            target=tuple(theirs.shape),
        )
    dtype = torch.promote_types(mine.dtype, torch.float32)
    return (mine.to(dtype) - theirs.to(dtype)).square().flatten(1).mean(dim=1)
