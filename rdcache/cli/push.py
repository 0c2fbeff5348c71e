"""`rdcache push`: a store to a root that others share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rdcache.cli import options
from rdcache.cli.output import in_bytes, json_option, print_facts, print_json, progress
from rdcache.store.locations import Location
from rdcache.store.transfer import Copy, Part, copy_store


@click.command(
    epilog="Example:  rdcache push ~/.cache/rdcache/stores/isic/pmc-clip/3f9c21d0a4b7 s3://team/rd"
)
@click.argument("store", type=options.LOCATION)
@click.argument("root", type=options.LOCATION)
@options.part
@options.signature_option
@json_option
def command(
    store: Location, root: Location, require_signature: Path | None, as_json: bool, **part: Any
) -> None:
    """Copy STORE under ROOT: a folder, or s3://BUCKET/FOLDER, gs://…, az://….

    Every shard is compared with its receipt. What is there already is not copied again, so after
    an interruption the same command goes on.
    """
    with progress("Pushing") as bar:
        copied = copy_store(store, root, Part(**part), bar, require_signature=require_signature)
    print_copy(copied, as_json)


def print_copy(copied: Copy, as_json: bool) -> None:
    """Say what was copied and where to."""
    store = copied.store
    facts = {
        "store": str(store.location),
        "status": copied.status,
        "samples": store.samples,
        "views": store.views,
        "taps": list(store.taps),
        "bytes": store.nbytes,
    }
    if as_json:
        print_json(facts)
        return
    title = "Copied." if copied.status == "copied" else "Nothing to copy: it is there already."
    print_facts(title, {**facts, "taps": ", ".join(store.taps), "bytes": in_bytes(store.nbytes)})
