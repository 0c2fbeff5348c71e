"""`rdcache import`: a store from an HDF5 file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rdcache.cli import options
from rdcache.cli.output import in_bytes, json_option, print_facts, print_json, progress
from rdcache.extraction.importing import ImportConfig, Imported, import_store

EXAMPLES = """\b
Examples:
  rdcache import isic.h5
  rdcache import uni.h5 --dataset busi --teacher-name uni --tap pooled=features --keys path
  rdcache import slides/ --dataset folder:thumbnails --teacher-name conch --tokens 64
"""


@click.command(epilog=EXAMPLES)
@click.argument("file", type=click.Path(path_type=Path))
@options.from_model(ImportConfig)
@json_option
def command(file: Path, config: ImportConfig, as_json: bool) -> None:
    """Make a store of FILE, without running any teacher.

    FILE is what `rdcache export` wrote; or an HDF5 file of features from elsewhere, a row for each
    image of a dataset; or a folder with one HDF5 file for each slide (features and coords, as
    pathology tools write them).
    """
    with progress("Importing") as bar:
        imported = import_store(file, config, bar)
    if as_json:
        print_json(import_facts(imported))
    else:
        _print_import(imported)


def import_facts(imported: Imported) -> dict[str, Any]:
    """What `--json` says of an import."""
    store = imported.store
    return {
        "store": str(store.location),
        "status": imported.status,
        "samples": store.samples,
        "views": store.views,
        "taps": {
            name: {"shape": list(tap.shape), "dtype": tap.dtype} for name, tap in store.taps.items()
        },
        "missing": list(imported.missing),
        "not_finite": list(imported.not_finite),
        "unmatched": list(imported.unmatched),
        "bytes": store.nbytes,
    }


def _print_import(imported: Imported) -> None:
    store = imported.store
    left_out = {
        "images without a row": imported.missing,
        "images with NaN or Inf": imported.not_finite,
        "rows without an image": imported.unmatched,
    }
    facts: dict[str, object] = {
        "store": store.location,
        "samples": f"{store.samples} × {store.views} view{'s' * (store.views > 1)}",
        "taps": ", ".join(
            f"{name} {'×'.join(map(str, tap.shape))} {tap.dtype}"
            for name, tap in store.taps.items()
        ),
        "size": in_bytes(store.nbytes),
    }
    if any(left_out.values()):
        facts["left out"] = "\n".join(
            f"{len(them)} {what}" for what, them in left_out.items() if them
        )
    facts["next"] = f"rdcache distill --store {store.location} --student shufflenet"
    unchanged = "Nothing to do: this store is there and complete."
    print_facts("Imported." if imported.status == "imported" else unchanged, facts)
