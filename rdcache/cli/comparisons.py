"""What `run`, `compare` and `demo` share: a recipe found and run, its table or its JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from rdcache.cli.output import print_json, print_note, print_table, progress
from rdcache.errors import UsageError
from rdcache.recipes import Places, Recipe, rows_of_cells, run_recipe, shipped_recipe
from rdcache.report import Comparison, Row, Table, as_csv, as_latex, as_markdown

FORMATS = {"markdown": as_markdown, "csv": as_csv, "latex": as_latex}


def found(file: Path) -> Path:
    """The file, or the recipe of this name that travels with the package."""
    if file.exists() or file.parent != Path():
        return file
    return shipped_recipe(file.name)


def require_writable(table: Path | None) -> None:
    """Refuse, before anything runs, a file that cannot be written after it.

    Raises:
        UsageError: its folder is not there, or it is a folder.
    """
    if table is None:
        return
    if not table.parent.is_dir():
        raise UsageError("there is no folder for the table.", folder=table.parent)
    if table.is_dir():
        raise UsageError("a table is written to a file; this is a folder.", folder=table)


def rows_of_recipe(recipe: Recipe, places: Places) -> list[Row]:
    """Run the recipe with a progress bar, and give its rows."""
    with progress("") as bar:
        return rows_of_cells(list(run_recipe(recipe, places, bar, print_note)))


def print_laid_out(table: Table) -> None:
    """Print a table and its notes for people."""
    headings = [heading.joined for heading in table.headings]
    print_table(table.title, headings, [[entry.text for entry in line] for line in table.lines])
    for note in table.notes:
        click.echo(f"  {note}")


def print_facts_of(title: str, comparisons: Sequence[Comparison]) -> None:
    """Print the same as one JSON object, with what was tried for the tuning."""
    print_json({"title": title, "rows": [_facts(each) for each in comparisons]})


def _facts(comparison: Comparison) -> dict[str, object]:
    """A row's numbers and tests, and how its weights were chosen."""
    row, base = comparison.row, comparison.base
    return {
        "dataset": row.dataset,
        "teacher": row.teacher,
        "student": row.student,
        "method": row.method,
        "split": row.split,
        "metrics": row.values,
        "tuned": row.tuning,
        "runs": {seed: str(folder) for seed, folder in row.runs.items()},
        "diverged": row.diverged,
        "compared": comparison.metric,
        "baseline": base.method if base else None,
        "gain": comparison.gain.as_facts() if comparison.gain else None,
        "over_images": asdict(comparison.images) if comparison.images else None,
        "unequal": comparison.unequal,
        "same_images": comparison.same_images,
    }
