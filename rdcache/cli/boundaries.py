"""`rdcache boundaries`: how runs divide planes through test images, and how far they agree."""

from __future__ import annotations

from pathlib import Path

import click

from rdcache.cli import options
from rdcache.cli.output import json_option, print_json, print_note, print_table, progress
from rdcache.distillation import load_run
from rdcache.report.boundary_picture import draw_boundaries
from rdcache.report.classified_planes import ClassifiedPlanes, classify_planes
from rdcache.report.picture_files import FORMATS, require_drawable
from rdcache.report.plane_classifiers import TeachersHere
from rdcache.store.locations import Location


@click.command(
    epilog="Example:  rdcache boundaries runs/busi-*-none-*/seed0 runs/busi-*-rd-*/seed0"
)
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN...")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("boundaries.png"),
    show_default=True,
    help=f"The picture ({', '.join(FORMATS)}), of the first plane.",
)
@click.option(
    "--triplets",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Planes that the agreement is averaged over.",
)
@click.option(
    "--resolution",
    type=click.IntRange(min=2),
    default=50,
    show_default=True,
    help="Points along each side of a plane.",
)
@click.option(
    "--images",
    metavar="UID,UID,UID",
    help="The plane through these test images, and no other; the beginnings of uids suffice.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of the triplets."
)
@click.option("--dataset", help="Where the images lie now, as in folder:PATH.")
@options.data_dir
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    help="A teacher whose place no store knows: torchscript:FILE, onnx:FILE, adapted:RUN; "
    "repeatable.",
)
@click.option("--weights", help="Weight file of the teacher, if the store was extracted with one.")
@click.option(
    "--store",
    "stores",
    type=options.LOCATION,
    multiple=True,
    help="A store that has moved since a run was made from it; repeatable.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:1.")
@options.salt_option
@json_option
def command(
    runs: tuple[Path, ...],
    out: Path,
    triplets: int,
    resolution: int,
    images: str | None,
    seed: int,
    dataset: str | None,
    data_dir: Path | None,
    teachers: tuple[str, ...],
    weights: str | None,
    stores: tuple[Location, ...],
    device: str,
    uid_salt: str | None,
    as_json: bool,
) -> None:
    """Draw how the students and teacher branches of RUNs divide the plane through three test images
    into classes, and say how often each two of them agree.
    """
    require_drawable(out)
    with progress("Classifying planes") as bar:
        planes = classify_planes(
            [load_run(run) for run in runs],
            triplets=triplets,
            resolution=resolution,
            seed=seed,
            images=[uid.strip() for uid in images.split(",")] if images else (),
            here=TeachersHere(teachers, weights, stores, data_dir),
            dataset=dataset,
            salt=uid_salt,
            device=device,
            on_progress=bar,
            on_note=print_note,
        )
    draw_boundaries(planes, out)
    if as_json:
        print_json(_as_facts(planes, out))
        return
    _print_agreements(planes)
    click.echo(f"The first plane is drawn in {out}")


def _as_facts(planes: ClassifiedPlanes, out: Path) -> dict[str, object]:
    titles = [panel.title for panel in planes.panels]
    return {
        "picture": str(out),
        "dataset": planes.dataset,
        "classes": planes.classes,
        "resolution": planes.predicted.shape[-1],
        "planes": [each.uids for each in planes.planes],
        "classifiers": [
            {"title": panel.title, "kind": panel.kind, "run": str(panel.run.path)}
            for panel in planes.panels
        ],
        "agreement": [
            {"one": titles[one], "other": titles[other], "mean": it.mean, "std": it.std}
            for (one, other), it in planes.agreements().items()
        ],
    }


def _print_agreements(planes: ClassifiedPlanes) -> None:
    titles, found = [panel.title for panel in planes.panels], planes.agreements()

    def cell(row: int, column: int) -> str:
        if row == column:
            return "–"
        it = found[min(row, column), max(row, column)]
        spread = f" ± {100 * it.std:.1f}" if len(planes.planes) > 1 else ""
        return f"{100 * it.mean:.1f}{spread}"

    many = f"{len(planes.planes)} planes, mean ± std" if len(planes.planes) > 1 else "one plane"
    print_table(
        f"Points of {many} that get the same class, in per cent ({planes.dataset})",
        ["", *titles],
        [
            [title, *(cell(row, at) for at in range(len(titles)))]
            for row, title in enumerate(titles)
        ],
    )
