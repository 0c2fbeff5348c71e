"""`rdcache rm`: delete stores."""

from __future__ import annotations

from pathlib import Path

import click

from rdcache.cli.output import in_bytes, json_option, print_json
from rdcache.store.housekeeping import remove_store


@click.command(epilog="Example:  rdcache rm ~/.cache/rdcache/stores/isic/pmc-clip/3f9c21d0a4b7")
@click.argument("stores", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
def command(stores: tuple[Path, ...], as_json: bool) -> None:
    """Delete STORES. One that an extraction is at work on is refused."""
    freed = {str(store): remove_store(store) for store in stores}
    if as_json:
        print_json({"removed": freed})
    else:
        for store, nbytes in freed.items():
            click.echo(f"Removed {store} ({in_bytes(nbytes)}).")
