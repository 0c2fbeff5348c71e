"""`rdcache demo`: both phases on embedded data, offline, in a few minutes on two CPU cores."""

from __future__ import annotations

from pathlib import Path

import click

from rdcache.cli.comparisons import print_facts_of, print_laid_out, rows_of_recipe
from rdcache.cli.output import json_option
from rdcache.recipes import Places, load_recipe, shipped_recipe
from rdcache.report import compare, plain_table

EXPLANATION = """
A frozen EfficientNet ran once over every view of drawn, ultrasound-like images. Its tensors are in
  {stores}
and ShuffleNet students were trained, with two seeds, on the same images, views and batches: `none`
from the labels alone, `rd` from the labels and the cached tensors. The runs (student.safetensors,
metrics.jsonl, result.json) lie in
  {runs}
A second call of this command finds all that and only prints the table. Now with your own images:
  rdcache extract --teacher efficientnet-lite2 --dataset folder:PATH_WITH_ONE_FOLDER_PER_CLASS
  rdcache distill --student shufflenet
"""


@click.command(epilog="Example:  rdcache demo")
@click.option(
    "--folder",
    type=click.Path(path_type=Path),
    default=Path("runs/demo"),
    show_default=True,
    help="Where the demo's store and runs are kept.",
)
@json_option
def command(folder: Path, as_json: bool) -> None:
    """Extract from a real pre-trained teacher and distil a student, on embedded data."""
    recipe = load_recipe(shipped_recipe("demo.yaml"))
    places = Places(root=folder / "stores", out=folder / "runs")
    comparisons = compare(rows_of_recipe(recipe, places))
    if as_json:
        print_facts_of(recipe.title, comparisons)
    else:
        print_laid_out(plain_table(recipe.title, comparisons))
        click.echo(EXPLANATION.format(stores=places.root, runs=places.out))
