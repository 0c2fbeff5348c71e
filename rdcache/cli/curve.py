"""`rdcache curve`: how many training images a student needs, by method."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from rdcache.cli.output import json_option, print_json, print_note, print_table
from rdcache.report.learning_curve import headline_of, learning_curve, notes_on, runs_below
from rdcache.report.learning_curve_picture import save_picture
from rdcache.report.learning_curve_tables import as_csv, as_facts, as_markdown, headings, rows
from rdcache.report.picture_files import require_drawable

FORMATS = ("text", "markdown", "csv")


@click.command(epilog="Example:  rdcache curve runs --out curve.png")
@click.argument("runs", type=click.Path(path_type=Path))
@click.option(
    "--metric",
    help="A number of the test (default: that of the task: accuracy, auroc or dice).",
)
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="FILE", help="Draw it too: .png, .svg, .pdf."
)
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="text", show_default=True, help="Print"
)
@json_option
def command(
    runs: Path,
    metric: str | None,
    out: Path | None,
    form: Literal["text", "markdown", "csv"],
    as_json: bool,
) -> None:
    """Tabulate a metric against the number of training images, of all finished runs in RUNS.

    The runs are those of `rdcache distill --train-fraction`, by several methods and seeds; the gain
    is over the plain student (`--method none`) of the same seeds, images and training options.
    """
    if out is not None:
        require_drawable(out)
    found = runs_below(runs)
    metric = metric or headline_of(found)
    lines = learning_curve(found, metric)
    for note in notes_on(lines):
        print_note(note)
    if out is not None:
        save_picture(lines, metric, out)
        print_note(f"drawn as {out}")
    if as_json:
        print_json(as_facts(lines, metric))
    elif form == "text":
        title = "Test metrics by the number of training images, in per cent, mean ± std of seeds"
        print_table(title, headings(metric), rows(lines))
    else:
        click.echo((as_markdown if form == "markdown" else as_csv)(lines, metric), nl=False)
