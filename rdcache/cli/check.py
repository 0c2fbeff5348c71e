"""`rdcache check`: what is wrong with a dataset before it is used."""

from __future__ import annotations

from pathlib import Path

import click

from rdcache.cli import options
from rdcache.cli.output import json_option, print_facts, print_json, progress
from rdcache.data import (
    DatasetSpec,
    describe_masks,
    describe_problems,
    describe_volumes,
    load_dataset,
)


@click.command(epilog="Example:  rdcache check btc")
@click.argument("dataset")
@options.data_dir
@click.option("--seed", default=0, show_default=True, help="Seed of the splits drawn here.")
@json_option
def command(dataset: str, data_dir: Path | None, seed: int, as_json: bool) -> None:
    """Look for unreadable files and masks, duplicates, and leaks across splits and classes of
    DATASET.
    """
    with progress("Scanning") as bar:
        loaded = load_dataset(DatasetSpec(name=dataset, seed=seed), data_dir, on_progress=bar)
    problems, masks = describe_problems(loaded), describe_masks(loaded)
    volumes = describe_volumes(loaded)
    if as_json:
        print_json(
            {
                "dataset": loaded.name,
                "task": loaded.task,
                "samples": len(loaded),
                "counts": loaded.counts(),
                "skipped": [{"path": str(s.path), "reason": s.reason} for s in loaded.skipped],
                "leaks": loaded.leaks.to_dict(),
                **({"volumes": volumes} if volumes else {}),
                **({"masks": masks} if masks else {}),
                "problems": problems,
            }
        )
        return
    counts = [
        f"{split:<6} {int((loaded.splits == split).sum()):>6}   "
        + ", ".join(f"{name} {count}" for name, count in by_class.items())
        for split, by_class in loaded.counts().items()
    ]
    what = "volumes" if loaded.dimensions == 3 else "images"
    print_facts(
        f"{loaded.title}: {len(loaded)} {what}, {len(loaded.classes)} classes.",
        {
            **({"volumes": "\n".join(volumes)} if volumes else {}),
            "splits": "\n".join(counts),
            **({"masks": "\n".join(masks)} if masks else {}),
            "problems": "\n".join(problems) or "none found",
        },
    )
