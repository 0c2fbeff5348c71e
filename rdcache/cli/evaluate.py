"""`rdcache evaluate`: a finished run's metrics, computed again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from rdcache.cli import options
from rdcache.cli.output import json_option, print_facts, print_json
from rdcache.distillation import evaluate_run, load_run


@click.command(epilog="Example:  rdcache evaluate runs/isic-pmc-clip-shufflenet-rd-1f2e3d4c/seed0")
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--split", type=click.Choice(["train", "val", "test"]), default="test", show_default=True
)
@click.option("--dataset", help="Where the images lie now, as in folder:PATH.")
@options.data_dir
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@options.salt_option
@json_option
def command(
    run: Path,
    split: Literal["train", "val", "test"],
    dataset: str | None,
    data_dir: Path | None,
    device: str,
    uid_salt: str | None,
    as_json: bool,
) -> None:
    """Classify the images of a split by the student of RUN, without store or teacher."""
    metrics = evaluate_run(
        load_run(run), split, dataset=dataset, data_dir=data_dir, device=device, salt=uid_salt
    )
    if as_json:
        print_json({"run": str(run), "split": split, "metrics": metrics})
    else:
        facts = {
            name.replace("_", " "): f"{100 * value:.1f}"
            for name, value in metrics.items()
            if isinstance(value, float) and name != "nll"
        }
        facts["log loss"] = f"{metrics['nll']:.3f} (no percentage)"
        recall: dict[str, float | None] = metrics["recall"]
        facts["recall"] = ", ".join(
            f"{name} " + ("–" if value is None else f"{100 * value:.1f}")
            for name, value in recall.items()
        )
        print_facts(f"{run}, {split} images, in per cent:", dict(facts))
