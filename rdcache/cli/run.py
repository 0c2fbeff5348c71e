"""`rdcache run`: a recipe, both phases for a whole grid."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from rdcache.cli import options
from rdcache.cli.output import json_option, print_json, print_note, print_table, progress
from rdcache.errors import UsageError
from rdcache.files import write_text
from rdcache.recipes import Cell, Places, Recipe, load_recipe, run_recipe, shipped_recipe
from rdcache.report.comparison import Comparison, Row, columns, compare, lines, markdown
from rdcache.store.locations import Location

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
LEAK_FREE = "accuracy_without_leaks"


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
    finished already is not done again.
    """
    recipe = load_recipe(_found(file))
    if table is not None and not table.parent.is_dir():
        raise UsageError("there is no folder for the table.", folder=table.parent)
    finished = run_and_collect(recipe, Places(root=root, data_dir=data_dir, out=out))
    comparisons = compare([row_of(cell) for cell in finished])
    if table is not None:
        write_text(table, markdown(comparisons, shown_metrics(comparisons)))
    if as_json:
        print_json(as_facts(recipe, finished, comparisons))
    else:
        print_comparisons(recipe.title, comparisons)


def _found(file: Path) -> Path:
    """The file, or the recipe of this name that travels with the package."""
    if file.exists() or file.parent != Path():
        return file
    return shipped_recipe(file.name)


def run_and_collect(recipe: Recipe, places: Places) -> list[Cell]:
    """Run the recipe with a progress bar."""
    with progress("") as bar:
        return list(run_recipe(recipe, places, bar, print_note))


def row_of(cell: Cell) -> Row:
    """A cell's test metrics by seed."""
    values: dict[str, dict[int, float]] = {}
    for run in cell.runs:
        for name in (*METRICS, LEAK_FREE):
            if isinstance(value := run.metrics.get(name), float):
                values.setdefault(name, {})[run.seed] = value
    return Row(
        *(cell.dataset, cell.teacher, cell.student, cell.method),
        values,
        factor=cell.tuned.factor if cell.tuned else None,
        diverged=tuple(each.seed for each in cell.diverged),
    )


def shown_metrics(comparisons: list[Comparison]) -> list[str]:
    """The leak-free accuracy is a column only where a test set leaks."""
    leaking = any(comparison.row.values.get(LEAK_FREE) for comparison in comparisons)
    return [METRICS[0], *([LEAK_FREE] if leaking else []), *METRICS[1:]]


def print_comparisons(title: str, comparisons: list[Comparison]) -> None:
    """Print the table: test metrics in per cent, and the paired gain in accuracy over `none`."""
    metrics = shown_metrics(comparisons)
    headings = [
        "gain over none (95 %)" if heading.startswith("gain") else heading
        for heading in columns(comparisons, metrics)
    ]
    print_table(title, headings, lines(comparisons, metrics))


def as_facts(
    recipe: Recipe, finished: list[Cell], comparisons: list[Comparison]
) -> dict[str, object]:
    """The same as one JSON object."""
    return {
        "title": recipe.title,
        "cells": [
            {
                "dataset": cell.dataset,
                "teacher": cell.teacher,
                "student": cell.student,
                "method": cell.method,
                "runs": [str(run.path) for run in cell.runs],
                "diverged": [
                    {"run": str(it.path), "seed": it.seed, "why": str(it.error)}
                    for it in cell.diverged
                ],
                "tuned": asdict(cell.tuned) if cell.tuned else None,
                "metrics": comparison.row.values,
                "gain": vars(comparison.gain) if comparison.gain else None,
            }
            for cell, comparison in zip(finished, comparisons, strict=True)
        ],
    }
