"""`rdcache compare`: a grid, or finished runs, as the table that one wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click

from rdcache.cli import options
from rdcache.cli.output import json_option, print_json
from rdcache.cli.run import (
    cell_row,
    found,
    print_laid_out,
    require_folder_of,
    row_facts,
    run_and_collect,
)
from rdcache.errors import UsageError
from rdcache.files import write_text
from rdcache.recipes import Places, load_recipe
from rdcache.report import (
    FORMS,
    Comparison,
    Row,
    as_csv,
    as_latex,
    as_markdown,
    compare,
    require_names,
    rows_of_folders,
)
from rdcache.store.locations import Location

FORMATS = {"markdown": as_markdown, "csv": as_csv, "latex": as_latex}


@click.command(
    epilog="Examples:  rdcache compare pipelines/methods_two_cores.yaml --form methods    "
    "rdcache compare runs --format latex"
)
@click.argument("what", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--form",
    type=click.Choice(list(FORMS)),
    default="plain",
    show_default=True,
    help="plain: a line a row, with all metrics and tests; methods, peft, gains, ablation: as in "
    "the paper's Tables 3, 4, 6 and its ablation; datasets: what they were trained and tested on.",
)
@click.option(
    "--format",
    "form_of_text",
    type=click.Choice(["text", *FORMATS]),
    default="text",
    show_default=True,
    help="csv holds numbers alone, means and standard deviations in columns of their own.",
)
@click.option(
    "--metric",
    default="accuracy",
    show_default=True,
    help="accuracy, balanced_accuracy, macro_f1, auroc, or accuracy_without_leaks.",
)
@click.option(
    "--baseline", default="none", show_default=True, help="The row that others are compared with."
)
@click.option(
    "--reference",
    is_flag=True,
    help="Add the paper's own numbers where dataset, student and teacher are the same.",
)
@click.option("--table", type=click.Path(path_type=Path), help="Write the table to this file.")
@options.root
@options.data_dir
@click.option("--out", type=click.Path(path_type=Path), help="Where runs of a recipe are kept.")
@json_option
def command(
    what: tuple[Path, ...],
    form: str,
    form_of_text: str,
    metric: str,
    baseline: str,
    reference: bool,
    table: Path | None,
    root: Location | None,
    data_dir: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Lay out WHAT: one recipe, whose missing runs are made first, or folders of finished runs.

    Folders are taken as they are, a grid that is still under way too.
    """
    require_folder_of(table)
    title, rows = _rows(what, Places(root=root, data_dir=data_dir, out=out))
    require_names(rows, metric, baseline)
    comparisons = compare(rows, metric, baseline)
    laid_out = FORMS[form](title, comparisons, baseline, reference)
    if as_json:
        print_json({"title": title, "rows": [_facts(each) for each in comparisons]})
    elif form_of_text == "text" and table is None:
        print_laid_out(laid_out)
    elif table is None:
        click.echo(FORMATS[form_of_text](laid_out), nl=False)
    if table is not None:
        write_text(table, FORMATS.get(form_of_text, as_markdown)(laid_out))


def _rows(what: Sequence[Path], places: Places) -> tuple[str, list[Row]]:
    """A title and the rows, of a recipe or of folders.

    Raises:
        UsageError: several recipes, or a recipe among folders.
    """
    folders = [path for path in what if path.is_dir()]
    if len(folders) == len(what):
        return "Runs in " + ", ".join(map(str, folders)), rows_of_folders(folders)
    if len(what) > 1:
        raise UsageError(
            "one recipe is compared, or folders of runs.",
            given=", ".join(map(str, what)),
            next="a recipe for all of it, or the folders that hold the runs",
        )
    recipe = load_recipe(found(what[0]))
    return recipe.title, [cell_row(cell) for cell in run_and_collect(recipe, places)]


def _facts(comparison: Comparison) -> dict[str, object]:
    """A row's numbers and tests."""
    return {
        **row_facts(comparison),
        "diverged": list(comparison.row.diverged),
        "compared": comparison.metric,
        "over_images": asdict(comparison.images) if comparison.images else None,
        "unequal": comparison.unequal,
    }
