"""Cells of a grid as rows of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from rdcache.recipes.running import Cell
from rdcache.report import Row, distinguished, row_of


def rows_of_cells(cells: Sequence[Cell]) -> list[Row]:
    """A row for each cell, by the name of its entry among the methods."""
    return distinguished([_row(cell) for cell in cells])


def _row(cell: Cell) -> Row:
    return row_of(
        (cell.dataset, cell.teacher, cell.student),
        cell.method,
        cell.runs,
        diverged={each.seed: each.error.summary for each in cell.diverged},
        tuning=asdict(cell.tuned) if cell.tuned else None,
        headline=cell.metric,
    )
