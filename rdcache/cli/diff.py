"""`rdcache diff`: why two stores are two."""

from __future__ import annotations

import json

import click

from rdcache.cli import options
from rdcache.cli.output import json_option, print_json, print_table
from rdcache.store.locations import Location
from rdcache.store.manifest import fingerprint_of, read_manifest


@click.command(epilog="Example:  rdcache diff STORE_A STORE_B")
@click.argument("first", type=options.LOCATION)
@click.argument("second", type=options.LOCATION)
@json_option
def command(first: Location, second: Location, as_json: bool) -> None:
    """Say which parts of the fingerprint differ between two stores."""
    one, other = (fingerprint_of(read_manifest(path), path) for path in (first, second))
    parts = {name: (one.parts.get(name), other.parts.get(name)) for name in one.differences(other)}
    if as_json:
        print_json({"same": not parts, "differences": parts})
    elif not parts:
        click.echo("Same fingerprint: the same teacher, images, views and taps.")
    else:
        rows = [(name, json.dumps(a), json.dumps(b)) for name, (a, b) in parts.items()]
        print_table("Fingerprints differ in", ["part", str(first), str(second)], rows)
