"""`rdcache compare`: a grid, or finished runs, as the table that one wants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from rdcache.cli import options
from rdcache.cli.comparisons import (
    FORMATS,
    found,
    print_facts_of,
    print_laid_out,
    require_writable,
    rows_of_recipe,
)
from rdcache.cli.output import json_option, print_note
from rdcache.errors import UnknownNameError, UsageError
from rdcache.files import write_text
from rdcache.recipes import Places, Recipe, load_recipe
from rdcache.report import (
    DISTANCES,
    FORMS,
    METRICS_BESIDE,
    PLAIN,
    Row,
    compare,
    leak_free,
    require_names,
    rows_of_folders,
    told_by_validation,
)
from rdcache.store.locations import Location

OF_ENDINGS = {".md": "markdown", ".csv": "csv", ".tex": "latex"}
COMPARED = list(
    dict.fromkeys(
        name
        for headline, those in METRICS_BESIDE.items()
        for name in (*those, leak_free(headline))
        if name not in DISTANCES  # of which less is better
    )
)
LEAK_FREE = {leak_free(headline) for headline in METRICS_BESIDE}
ADAPTED = "adapted:"  # whose rows have names that only their results tell


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
    help="csv holds numbers alone, standard deviations and bounds in columns of their own. A file "
    "for --table has the format of its ending: .md, .csv, .tex.",
)
@click.option(
    "--metric",
    type=click.Choice(COMPARED),
    help="What is compared (default: that of each task: accuracy, auroc, dice).",
)
@click.option(
    "--split",
    type=click.Choice(["test", "val"]),
    default="test",
    show_default=True,
    help="Images that the metrics are of. val: of the validation images, to choose among methods "
    "without a look at the test images; there are no tests over images then.",
)
@click.option(
    "--baseline", default=PLAIN, show_default=True, help="The row that others are compared with."
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
    metric: str | None,
    split: str,
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
    require_writable(table)
    if split == "val":
        _refuse_what_is_of_test_images(metric, reference)
    places = Places(root=root, data_dir=data_dir, out=out)
    title, rows = _rows(what, places, baseline)
    if split == "val":
        title, rows = f"{title}, validation images", _told_by_validation(rows)
    require_names(rows, metric, baseline)
    comparisons = compare(rows, metric, baseline)
    laid_out = FORMS[form](title, comparisons, baseline, reference)
    if table is not None:
        chosen = OF_ENDINGS.get(table.suffix.lower(), "markdown")
        chosen = form_of_text if form_of_text != "text" else chosen
        write_text(table, FORMATS[chosen](laid_out))
    if as_json:
        print_facts_of(title, comparisons)
    elif table is None and form_of_text == "text":
        print_laid_out(laid_out)
    elif table is None:
        click.echo(FORMATS[form_of_text](laid_out), nl=False)


def _rows(what: Sequence[Path], places: Places, baseline: str) -> tuple[str, list[Row]]:
    """A title and the rows, of a recipe or of folders.

    Raises:
        UsageError: several recipes, a recipe among folders, or nothing of that name.
    """
    folders = [path for path in what if path.is_dir()]
    if len(folders) == len(what):
        _refuse_places(places)
        title = "Runs in " + ", ".join(map(str, folders))
        return title, rows_of_folders(folders, print_note)
    if len(what) > 1:
        for path in what:
            if not path.exists():
                raise UsageError("there is no such folder or recipe.", given=path)
        raise UsageError(
            "one recipe is compared, or folders of runs.",
            given=", ".join(map(str, what)),
            next="a recipe for all of it, or the folders that hold the runs",
        )
    if not what[0].exists() and not what[0].suffix:
        raise UsageError("there is no such folder of runs.", given=what[0])
    recipe = load_recipe(found(what[0]))
    _require_baseline(recipe, baseline)
    return recipe.title, rows_of_recipe(recipe, places)


def _refuse_what_is_of_test_images(metric: str | None, reference: bool) -> None:
    """Refuse, before anything is trained, what `--split val` cannot tell.

    Raises:
        UsageError: saying why.
    """
    if reference:
        raise UsageError("--reference: the paper's numbers are of test images, not of --split val.")
    if metric in LEAK_FREE:
        raise UsageError(f"--metric {metric} is of test images, not of --split val.")


def _told_by_validation(rows: Sequence[Row]) -> list[Row]:
    """The rows with what their validation images say.

    Raises:
        UsageError: there were none of these.
    """
    if any(row.values for row in rows) and not any(row.validation for row in rows):
        raise UsageError(
            "these runs have no validation images.",
            next="--split test, or a store with a larger --val-fraction",
        )
    return [told_by_validation(row) for row in rows]


def _require_baseline(recipe: Recipe, baseline: str) -> None:
    """Refuse, before anything is trained, a baseline that the recipe's rows will not have.

    Raises:
        UnknownNameError: naming what there will be.
    """
    grids = recipe.as_grids()
    listed = list(dict.fromkeys(entry for grid in grids for entry in grid.methods))
    entries = {name for it in listed for name in (it, recipe.variant(it).method)}
    teachers = (teacher for grid in grids for teacher in grid.single_teachers)
    adapted = any(teacher.startswith(ADAPTED) for teacher in teachers)
    if baseline not in {PLAIN, *entries} and not adapted:
        raise UnknownNameError.of("row", baseline, listed)


def _refuse_places(places: Places) -> None:
    """Refuse options that say where a recipe reads and writes, beside folders, which are only read.

    Raises:
        UsageError: naming the first of them.
    """
    given = {"--root": places.root, "--data-dir": places.data_dir, "--out": places.out}
    for option, value in given.items():
        if value is not None:
            raise UsageError(f"{option} is of a recipe; folders of runs are taken as they are.")
