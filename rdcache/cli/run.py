"""`rdcache run`: a recipe, both phases for a whole grid."""

from __future__ import annotations

from pathlib import Path

import click

from rdcache.cli import options
from rdcache.cli.comparisons import (
    found,
    print_facts_of,
    print_laid_out,
    require_writable,
    rows_of_recipe,
)
from rdcache.cli.output import json_option
from rdcache.files import write_text
from rdcache.recipes import Places, load_recipe
from rdcache.report import as_markdown, compare, plain_table
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
    require_writable(table)
    comparisons = compare(rows_of_recipe(recipe, Places(root=root, data_dir=data_dir, out=out)))
    laid_out = plain_table(recipe.title, comparisons)
    if table is not None:
        write_text(table, as_markdown(laid_out))
    if as_json:
        print_facts_of(recipe.title, comparisons)
    else:
        print_laid_out(laid_out)
