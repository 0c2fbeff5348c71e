"""`rdcache diff`: why two stores are two."""

from __future__ import annotations

import json
from pathlib import Path

import click

from rdcache.cli.output import json_option, print_json, print_table
from rdcache.store.manifest import fingerprint_of, read_manifest


@click.command(epilog="Example:  rdcache diff STORE_A STORE_B")
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@json_option
def command(first: Path, second: Path, as_json: bool) -> None:
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
