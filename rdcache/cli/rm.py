"""`rdcache rm`: delete stores."""

from __future__ import annotations

import click

from rdcache.cli import options
from rdcache.cli.output import in_bytes, json_option, print_json
from rdcache.store.housekeeping import remove_store
from rdcache.store.locations import Location


@click.command(epilog="Example:  rdcache rm ~/.cache/rdcache/stores/isic/pmc-clip/3f9c21d0a4b7")
@click.argument("stores", nargs=-1, required=True, type=options.LOCATION)
@json_option
def command(stores: tuple[Location, ...], as_json: bool) -> None:
    """Delete STORES. One that an extraction is at work on is refused."""
    freed = {str(store): remove_store(store) for store in stores}
    if as_json:
        print_json({"removed": freed})
    else:
        for store, nbytes in freed.items():
            click.echo(f"Removed {store} ({in_bytes(nbytes)}).")
