"""`rdcache gc`: what crashed or forgotten work has left under a root."""

from __future__ import annotations

import click

from rdcache.cli import options
from rdcache.cli.output import in_bytes, json_option, print_json, print_table
from rdcache.store import default_root
from rdcache.store.housekeeping import delete_garbage, find_garbage
from rdcache.store.locations import Location, below


@click.command(epilog="Example:  rdcache gc --unused-for 90 --delete")
@options.root
@click.option(
    "--unused-for",
    type=click.FloatRange(min=0),
    metavar="DAYS",
    help="Also complete stores that nobody has opened for so many days.",
)
@click.option("--incomplete", is_flag=True, help="Also stores whose extraction has not finished.")
@click.option("--delete", is_flag=True, help="Delete it; without this, it is only listed.")
@json_option
def command(
    root: Location | None, unused_for: float | None, incomplete: bool, delete: bool, as_json: bool
) -> None:
    """List what nobody needs under the root, and delete it if told to.

    Leftovers of processes that died are always listed; stores only if asked for. What a live
    process is at work on is never touched.
    """
    folder = default_root(root)
    found = find_garbage(folder, unused_for, incomplete)
    if delete:
        for garbage in found:
            delete_garbage(garbage)
    if as_json:
        entries = [{"path": str(it.path), "why": it.why, "bytes": it.nbytes} for it in found]
        print_json({"root": str(folder), "deleted": delete, "garbage": entries})
    elif not found:
        click.echo(f"Nothing to clean up under {folder}.")
    else:
        rows = [(below(folder, it.path), it.why, in_bytes(it.nbytes)) for it in found]
        print_table(
            f"{'Deleted' if delete else 'Would delete'} under {folder}",
            ["what", "why", "size"],
            rows,
        )
        if not delete:
            click.echo("Nothing is deleted yet: add --delete.")
