"""CKA of maps (B, C, *positions): what stands for a sample, a whole map or a part of it.

pooled      the mean of a map over its positions: n is the batch
positions   positions drawn from all maps of the batch, on a grid that both sides share: n is as
            many as are drawn, so that it works for batches of 2
patches     the cells of a coarser grid: n is the batch times the cells

Positions and cells of one map are alike, so that an n of them says less than as many samples do.
All is computed in float32 at least, also under autocast; see `similarity.py` for CKA itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.losses.similarity import cka


def cka_pooled(
    x: torch.Tensor, y: torch.Tensor, unbiased: bool = True, min_batch: int = 4
) -> torch.Tensor:
    """CKA of maps averaged over their positions.

    Args:
        x: (B, C_x, *positions).
        y: (B, C_y, *positions); the positions may be others.
        min_batch: smallest batch that is accepted, at least 4.

    Raises:
        UsageError: the batch is too small, for which `cka_positions` is there.
    """
    if len(x) < min_batch:
        raise UsageError(
            f"CKA of pooled maps compares the samples of a batch, and {len(x)} are too few.",
            needs=f"at least {min_batch}",
            instead="CKA of positions",
        )
    return cka(_rows(x, (1,) * (x.ndim - 2)), _rows(y, (1,) * (y.ndim - 2)), unbiased)


def cka_positions(
    x: torch.Tensor,
    y: torch.Tensor,
    grid: int,
    count: int,
    foreground: torch.Tensor | None = None,
    unbiased: bool = True,
) -> torch.Tensor:
    """CKA of positions that are drawn from all maps of a batch.

    Both are averaged to a grid that is no finer than either and has at most `grid` positions along
    each axis. The draw is of torch's random numbers, without replacement.

    Args:
        x: (B, C_x, *positions).
        y: (B, C_y, *positions); the positions may be others.
        grid: positions along an axis, at most.
        count: positions that are drawn, at most: all are taken where there are no more.
        foreground: bool or 0/1 (B, *positions) of any size: as many positions are drawn that touch
            it as positions that do not, as far as there are.

    Raises:
        UsageError: other shapes, or fewer than 4 positions.
    """
    _require_maps(x, y)
    size = common_grid(x, y, grid)
    rows = _rows(x, size), _rows(y, size)
    if count < len(rows[0]) or foreground is not None:
        inside = None if foreground is None else touched_cells(foreground, size).flatten()
        drawn = draw_positions(len(rows[0]), count, inside, x.device)
        rows = rows[0][drawn], rows[1][drawn]
    return cka(*rows, unbiased)


def cka_patches(
    x: torch.Tensor, y: torch.Tensor, patches: int, unbiased: bool = True
) -> torch.Tensor:
    """CKA of cells: both maps averaged to `patches` cells along each axis, fewer where one is
    shorter.

    Args:
        x: (B, C_x, *positions).
        y: (B, C_y, *positions); the positions may be others.

    Raises:
        UsageError: other shapes, or fewer than 4 cells.
    """
    _require_maps(x, y)
    size = common_grid(x, y, patches)
    return cka(_rows(x, size), _rows(y, size), unbiased)


def common_grid(x: torch.Tensor, y: torch.Tensor, most: int) -> tuple[int, ...]:
    """Along each axis the positions of the coarser map, at most `most`."""
    return tuple(min(*sides, most) for sides in zip(x.shape[2:], y.shape[2:], strict=True))


def touched_cells(foreground: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Which cells of a coarser grid have any foreground in them: bool (B, *size)."""
    maps, sides = foreground.unsqueeze(1).float(), list(size)
    pooled: Any = F.adaptive_max_pool3d if maps.ndim == 5 else F.adaptive_max_pool2d
    cells: torch.Tensor = pooled(maps, sides).squeeze(1) > 0
    return cells


def draw_positions(
    positions: int, count: int, foreground: torch.Tensor | None, device: torch.device
) -> torch.Tensor:
    """Draw `count` of so many positions, or all that there are, without replacement: int64.

    With `foreground`, bool (positions,), half of them are in it and half are not, or all of the
    kind that there is less of. Nothing is waited for on a GPU.
    """
    order = torch.randperm(positions, device=device)
    if foreground is None:
        return order[:count]
    inside = foreground[order]
    # The first of each kind come first, then the second of each, until one kind is used up.
    turn = torch.where(inside, inside.cumsum(0), (~inside).cumsum(0))
    return order[turn.argsort(stable=True)[:count]]


def average_pooled(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Average (B, C, *positions) to so many along each axis; as they are where they have them."""
    sides: Any = tuple(size)
    if tuple(maps.shape[2:]) == sides:
        return maps
    if maps.ndim == 5:
        return F.adaptive_avg_pool3d(maps, sides)
    return F.adaptive_avg_pool2d(maps, sides)


def _rows(maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Average (B, C, *positions) to a grid, a row for each cell: (B·cells, C)."""
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))
    return average_pooled(maps, size).movedim(1, -1).flatten(0, -2)


def _require_maps(x: torch.Tensor, y: torch.Tensor) -> None:
    if x.ndim != y.ndim or x.ndim not in (4, 5) or len(x) != len(y):
        raise UsageError(
            "maps are compared as two (sample, channel, *positions) tensors of equally many "
            "samples and axes.",
            x=tuple(x.shape),
            y=tuple(y.shape),
        )
