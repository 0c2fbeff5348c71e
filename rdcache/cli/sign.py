"""`rdcache sign`: vouch for a store, or make the keys for it."""

from __future__ import annotations

from pathlib import Path

import click

from rdcache.cli import options
from rdcache.cli.output import json_option, print_facts, print_json, progress
from rdcache.errors import UsageError
from rdcache.store.locations import Location
from rdcache.store.signatures import new_key
from rdcache.store.signing import sign_store

EXAMPLES = """\b
Examples:
  rdcache sign --new-key ada            writes ada.pem, for you alone, and ada.pub.pem, for all
  rdcache sign STORE --key ada.pem
  rdcache distill --store STORE --require-signature ada.pub.pem
"""


@click.command(epilog=EXAMPLES)
@click.argument("store", required=False, type=options.LOCATION)
@click.option("--key", type=click.Path(path_type=Path), help="Private key (Ed25519, PEM).")
@click.option(
    "--new-key",
    type=click.Path(path_type=Path),
    metavar="NAME",
    help="Make a pair of keys, NAME.pem and NAME.pub.pem, and sign nothing.",
)
@json_option
def command(store: Location | None, key: Path | None, new_key: Path | None, as_json: bool) -> None:
    """Verify every byte of STORE, then sign it, so that others can refuse what was tampered with.

    Several people can sign one store. A store that is mended loses its signatures.
    """
    if new_key is not None:
        if store is not None or key is not None:
            raise UsageError("make a key first, then sign with it.", leave_out="STORE and --key")
        _make_key(new_key, as_json)
    elif store is None or key is None:
        raise UsageError(
            "say which store to sign, and with which key.",
            next="rdcache sign STORE --key NAME.pem    (rdcache sign --new-key NAME makes one)",
        )
    else:
        _sign(store, key, as_json)


def _make_key(name: Path, as_json: bool) -> None:
    private, public, fingerprint = new_key(name)
    facts: dict[str, object] = {
        "private": str(private),
        "public": str(public),
        "fingerprint": fingerprint,
    }
    if as_json:
        print_json(facts)
    else:
        facts["private"] = f"{private}    (keep it to yourself; it has no password)"
        facts["public"] = f"{public}    (for everyone: --require-signature {public})"
        print_facts("Made a pair of keys.", facts)


def _sign(store: Location, key: Path, as_json: bool) -> None:
    with progress("Verifying") as bar:
        fingerprint = sign_store(store, key, bar)
    if as_json:
        print_json({"store": str(store), "fingerprint": fingerprint})
    else:
        print_facts(f"Signed {store}.", {"key": fingerprint})
