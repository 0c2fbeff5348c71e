"""`rdcache pull`: a store from a root that others share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rdcache.cli import options
from rdcache.cli.output import json_option, progress
from rdcache.cli.push import print_copy
from rdcache.store.locations import Location
from rdcache.store.transfer import Part, copy_store


@click.command(
    epilog="Example:  rdcache pull s3://team/rd/isic/pmc-clip/3f9c21d0a4b7 --taps pooled --views 4"
)
@click.argument("store", type=options.LOCATION)
@click.argument("root", type=options.LOCATION, required=False)
@options.part
@options.signature_option
@json_option
def command(
    store: Location,
    root: Location | None,
    require_signature: Path | None,
    as_json: bool,
    **part: Any,
) -> None:
    """Copy STORE, an address in a bucket, under ROOT (default: RDCACHE_ROOT, else the user's cache
    folder).

    Every shard is compared with its receipt. What is there already is not copied again, so after
    an interruption the same command goes on.
    """
    with progress("Pulling") as bar:
        copied = copy_store(store, root, Part(**part), bar, require_signature=require_signature)
    print_copy(copied, as_json)
