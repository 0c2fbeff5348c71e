"""`rdcache run`: a recipe, both phases for a whole grid."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import click

from rdcache.cli import options
from rdcache.cli.output import json_option, print_json, print_note, print_table, progress
from rdcache.errors import UsageError
from rdcache.files import write_text
from rdcache.recipes import Cell, Places, Recipe, load_recipe, run_recipe, shipped_recipe
from rdcache.report import Comparison, Row, Table, as_markdown, compare, plain_table, row_of
from rdcache.store.locations import Location


@click.command(epilog="Example:  rdcache run pipelines/rd_busi.yaml")
@click.argument("file", type=click.Path(path_type=Path))
@options.root
@options.data_dir
@click.option("--out", type=click.Path(path_type=Path), help="Where runs are kept.")
@click.option("--table", type=click.Path(path_type=Path), help="Also write the table as Markdown.")
@json_option
def command(
    file: Path,
    root: Location | None,
    data_dir: Path | None,
    out: Path | None,
    table: Path | None,
    as_json: bool,
) -> None:
    """Run a recipe FILE: both phases for every teacher, dataset, student, method and seed.

    FILE may also be the name of a recipe that travels with the package, such as demo.yaml. What is
    finished already is not done again. `rdcache compare` lays the result out in other forms.
    """
    recipe = load_recipe(found(file))
    require_folder_of(table)
    finished = run_and_collect(recipe, Places(root=root, data_dir=data_dir, out=out))
    comparisons = compare([cell_row(cell) for cell in finished])
    laid_out = plain_table(recipe.title, comparisons)
    if table is not None:
        write_text(table, as_markdown(laid_out))
    if as_json:
        print_json(as_facts(recipe, finished, comparisons))
    else:
        print_laid_out(laid_out)


def found(file: Path) -> Path:
    """The file, or the recipe of this name that travels with the package."""
    if file.exists() or file.parent != Path():
        return file
    return shipped_recipe(file.name)


def require_folder_of(table: Path | None) -> None:
    """Refuse, before anything runs, a file that cannot be written after it.

    Raises:
        UsageError: its folder is not there.
    """
    if table is not None and not table.parent.is_dir():
        raise UsageError("there is no folder for the table.", folder=table.parent)


def run_and_collect(recipe: Recipe, places: Places) -> list[Cell]:
    """Run the recipe with a progress bar."""
    with progress("") as bar:
        return list(run_recipe(recipe, places, bar, print_note))


def cell_row(cell: Cell) -> Row:
    """A cell as a row of the comparison."""
    row = row_of(
        (cell.dataset, cell.teacher, cell.student),
        cell.method,
        cell.runs,
        factor=cell.tuned.factor if cell.tuned else None,
        diverged=tuple(each.seed for each in cell.diverged),
    )
    return replace(row, tuning=asdict(cell.tuned) if cell.tuned else None)


def print_laid_out(table: Table) -> None:
    """Print a table and its notes for people."""
    headings = [heading.joined for heading in table.headings]
    print_table(table.title, headings, [[entry.text for entry in line] for line in table.lines])
    for note in table.notes:
        click.echo(f"  {note}")


def as_facts(
    recipe: Recipe, finished: list[Cell], comparisons: list[Comparison]
) -> dict[str, object]:
    """The same as one JSON object, with what was tried for the tuning."""
    cells = []
    for cell, comparison in zip(finished, comparisons, strict=True):
        diverged = [
            {"run": str(it.path), "seed": it.seed, "why": str(it.error)} for it in cell.diverged
        ]
        runs = [str(run.path) for run in cell.runs]
        cells.append({**row_facts(comparison), "runs": runs, "diverged": diverged})
    return {"title": recipe.title, "cells": cells}


def row_facts(comparison: Comparison) -> dict[str, object]:
    """A row's numbers, how its weights were chosen, and its gain over the seeds."""
    row = comparison.row
    return {
        "dataset": row.dataset,
        "teacher": row.teacher,
        "student": row.student,
        "method": row.method,
        "metrics": row.values,
        "tuned": row.tuning,
        "gain": _finite(asdict(comparison.gain)) if comparison.gain else None,
    }


def _finite(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """JSON has no infinity, which the interval of a single seed would need."""
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
