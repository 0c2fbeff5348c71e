"""`rdcache evaluate`: a finished run's metrics, computed again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

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
    """Measure the student of RUN on a split again, without store or teacher."""
    loaded = load_run(run)
    metrics = evaluate_run(
        loaded, split, dataset=dataset, data_dir=data_dir, device=device, salt=uid_salt
    )
    if as_json:
        print_json({"run": str(run), "split": split, "metrics": metrics})
    else:
        print_facts(f"{run}, {split} images, in per cent:", _as_people_read(metrics, loaded.metric))


def _as_people_read(metrics: Mapping[str, Any], headline: str) -> dict[str, object]:
    """Fractions in per cent, what is none in its own unit, and each class's own headline."""
    unit = metrics.get("distance_unit", "")
    plain = {
        "nll": ("log loss", "(no percentage)"),
        "bce": ("log loss", "(no percentage)"),
        "hd95": ("hd95", unit),
        "nsd_tolerance": ("nsd tolerance", unit),
    }
    facts: dict[str, object] = {}
    for name, value in metrics.items():
        if isinstance(value, float) and name not in plain:
            facts[name.replace("_", " ")] = f"{100 * value:.1f}"
    for name, (title, what) in plain.items():
        if isinstance(metrics.get(name), float):
            facts[title] = f"{metrics[name]:.3f} {what}"
    if undefined := metrics.get("hd95_undefined"):
        facts["hd95 undefined"] = f"{undefined} (one of two masks is empty)"
    of_class: Mapping[str, float | None] = metrics.get("recall") or {
        name: numbers[headline] for name, numbers in metrics.get("of_class", {}).items()
    }
    facts["recall" if "recall" in metrics else f"{headline} of classes"] = ", ".join(
        f"{name} " + ("–" if value is None else f"{100 * value:.1f}")
        for name, value in of_class.items()
    )
    return facts
