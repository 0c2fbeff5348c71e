"""`rdcache export`: a store as one HDF5 file."""

from __future__ import annotations

from pathlib import Path

import click

from rdcache.cli import options
from rdcache.cli.output import in_bytes, json_option, print_facts, print_json, progress
from rdcache.store import open_store
from rdcache.store.hdf5_export import export_hdf5
from rdcache.store.locations import Location


@click.command(
    epilog="Example:  rdcache export ~/.cache/rdcache/stores/isic/pmc-clip/3f9c21d0a4b7 isic.h5"
)
@click.argument("store", type=options.LOCATION)
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there already.")
@options.signature_option
@json_option
def command(
    store: Location, file: Path, overwrite: bool, require_signature: Path | None, as_json: bool
) -> None:
    """Write STORE, a path, as one HDF5 FILE, which `rdcache import` makes the same store again.

    Every number is compared with its checksum on the way.
    """
    opened = open_store(store, require_signature=require_signature)
    with progress("Exporting") as bar:
        export_hdf5(opened, file, overwrite=overwrite, on_progress=bar)
    facts = {
        "file": str(file),
        "store": str(opened.location),
        "samples": opened.samples,
        "views": opened.views,
        "taps": {
            name: {"shape": list(tap.shape), "dtype": tap.dtype}
            for name, tap in opened.taps.items()
        },
        "bytes": file.stat().st_size,
    }
    if as_json:
        print_json(facts)
    else:
        shown = {
            "file": file,
            "samples": f"{opened.samples} × {opened.views} view{'s' * (opened.views > 1)}",
            "taps": ", ".join(opened.taps),
            "size": in_bytes(file.stat().st_size),
            "next": f"rdcache import {file}    (on another machine, or under another root)",
        }
        print_facts("Exported.", shown)
