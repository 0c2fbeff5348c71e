"""`rdcache predict`: what a finished run's student says about files."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import click

from rdcache.cli.output import json_option, print_json, print_table
from rdcache.distillation import FilePrediction, load_run, predict_files
from rdcache.errors import UsageError
from rdcache.files import write_text

TABLE = "predictions.csv"


@click.command(
    epilog="Examples:  rdcache predict runs/busi-…/seed0 a.png b.png    "
    "rdcache predict runs/busi-seg-…/seed0 a.png --out masks"
)
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help=f"Write masks there, or the table of classes as {TABLE}.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@json_option
def command(
    run: Path, files: tuple[Path, ...], out: Path | None, device: str, as_json: bool
) -> None:
    """Classify or segment FILES by the student of RUN.

    Masks of images are PNG files in the image's own size, those of volumes NIfTI files on the
    volume's own grid.
    """
    if out is not None and out.resolve() == run.resolve():
        raise UsageError(
            "the run keeps what it says of its test images there.",
            given=f"--out {out}",
            next="--out with a folder of its own",
        )
    found = predict_files(load_run(run), files, out, device)
    if out is not None and found[0].mask is None:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / TABLE, _as_csv(found))
    if as_json:
        print_json({"run": str(run), "files": [each.as_facts() for each in found]})
    elif found[0].mask is not None:
        rows = [(it.file, it.mask, _counted(it)) for it in found]
        print_table(f"Masks by {run}", ["file", "mask", "pixels or voxels"], rows)
    else:
        names = list(found[0].probabilities)
        table = [
            (
                it.file,
                ", ".join(it.predicted) or "–",
                *(f"{p:.3f}" for p in it.probabilities.values()),
            )
            for it in found
        ]
        print_table(f"Predictions by {run}", ["file", "predicted", *names], table)


def _counted(prediction: FilePrediction) -> str:
    return ", ".join(f"{name} {count}" for name, count in prediction.extent.items())


def _as_csv(found: Sequence[FilePrediction]) -> str:
    """One line a file: what it is called, and the probability of each class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "predicted", *(f"p_{name}" for name in found[0].probabilities)])
    for each in found:
        numbers = (f"{p:.7g}" for p in each.probabilities.values())
        writer.writerow([each.file, ";".join(each.predicted), *numbers])
    return text.getvalue()
