"""Cells of a grid as rows of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace

from rdcache.recipes.running import Cell
from rdcache.report import Row, distinguished, row_of


def rows_of_cells(cells: Sequence[Cell]) -> list[Row]:
    """A row for each cell, by the name of its entry among the methods."""
    return distinguished([_row(cell) for cell in cells])


def _row(cell: Cell) -> Row:
    row = row_of(
        (cell.dataset, cell.teacher, cell.student),
        cell.method,
        cell.runs,
        factor=cell.tuned.factor if cell.tuned else None,
        diverged={each.seed: each.error.summary for each in cell.diverged},
    )
    return replace(row, tuning=asdict(cell.tuned) if cell.tuned else None)
