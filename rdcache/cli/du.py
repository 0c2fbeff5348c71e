"""`rdcache du`: what stores take on the disk."""

from __future__ import annotations

import click

from rdcache.cli import options
from rdcache.cli.output import in_bytes, json_option, print_json, print_table
from rdcache.store import default_root, list_stores
from rdcache.store.housekeeping import disk_usage
from rdcache.store.locations import Location, below


@click.command(epilog="Example:  rdcache du")
@options.root
@json_option
def command(root: Location | None, as_json: bool) -> None:
    """Say how much each store under the root takes on the disk, largest first."""
    folder = default_root(root)
    sizes = {summary.location: disk_usage(summary.location) for summary in list_stores(folder)}
    largest_first = sorted(sizes.items(), key=lambda item: -item[1])
    if as_json:
        stores = [{"store": str(path), "bytes": nbytes} for path, nbytes in largest_first]
        print_json({"root": str(folder), "stores": stores, "bytes": sum(sizes.values())})
    else:
        rows = [(in_bytes(nbytes), below(folder, path)) for path, nbytes in largest_first]
        print_table(
            str(folder), ["size", "store"], [*rows, (in_bytes(sum(sizes.values())), "in all")]
        )
