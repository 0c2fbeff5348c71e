"""`rdcache info`: one store described."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from rdcache.cli import options
from rdcache.cli.output import (
    described,
    fidelity_lines,
    in_bytes,
    json_option,
    print_facts,
    print_json,
)
from rdcache.data.salting import CHECK
from rdcache.errors import StoreFormatError
from rdcache.store import Store, newest_store, open_store
from rdcache.store.locations import Location
from rdcache.store.signatures import fingerprint, signatures_of


@click.command(epilog="Example:  rdcache info ~/.cache/rdcache/stores/isic/pmc-clip/3f9c21d0a4b7")
@click.argument("store", required=False, type=options.LOCATION)
@options.root
@options.signature_option
@json_option
def command(
    store: Location | None, root: Location | None, require_signature: Path | None, as_json: bool
) -> None:
    """Describe STORE; without it, the newest complete store under the root."""
    opened = open_store(
        store or newest_store(root), allow_incomplete=True, require_signature=require_signature
    )
    if as_json:
        print_json(opened.manifest)
    else:
        print_facts(f"{opened.location}", _facts(opened) | _signers(opened, require_signature))


def _signers(store: Store, checked: Path | None) -> dict[str, object]:
    """Who signed the store, by their keys; what nobody has checked is not said to be true."""
    signers = ", ".join(map(fingerprint, signatures_of(store.manifest)))
    if checked is not None:
        return {"signed": f"by {checked}, which fits (all keys: {signers})"}
    if signers:
        return {"signed": f"it says by {signers}; --require-signature KEY checks that"}
    return {}


def _privacy(dataset: Mapping[str, Any]) -> dict[str, object]:
    """What a store tells of its images beyond the usual, or less."""
    facts: dict[str, object] = {}
    if CHECK in dataset:
        facts["uids"] = "salted: only who has the salt can match them with images"
    if "paths" in dataset:
        facts["paths"] = f"kept: this store names its {len(dataset['paths'])} files"
    return facts


def _facts(store: Store) -> dict[str, object]:
    """What the manifest says, which anyone may have written.

    Raises:
        StoreFormatError: it does not say what this store was made of.
    """
    try:
        return _described(store)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreFormatError(
            "the manifest of this store does not say what it was made of.",
            store=store.location,
            lacks=error,
            next="rdcache info STORE --json shows what it says",
        ) from None


def _described(store: Store) -> dict[str, object]:
    manifest = store.manifest
    dataset, teacher = manifest["dataset"], manifest["teacher"]
    taps = [f"{described(tap)}, {in_bytes(tap.nbytes)} a sample" for tap in store.taps.values()]
    splits = [f"{split} {len(store.samples_of(split))}" for split in dataset["counts"]]
    return {
        "complete": "yes" if store.complete else "no: run the same `rdcache extract` again",
        "teacher": f"{teacher['name']} ({teacher['architecture']})",
        "weights": f"{teacher['weights']['source']}, sha256 {teacher['weights']['sha256'][:12]}…",
        "dataset": f"{dataset['name']}: {', '.join(dataset['classes'])}",
        **({"task": task} if (task := dataset.get("task", "multiclass")) != "multiclass" else {}),
        "samples": f"{store.samples} ({', '.join(splits)})",
        **_privacy(dataset),
        "views": f"{store.views} ({manifest['views']['kind']})",
        "taps": "\n".join(taps),
        **({"fidelity": "\n".join(lines)} if (lines := fidelity_lines(manifest)) else {}),
        "size": in_bytes(store.nbytes),
        "made": manifest["created"],
        "by": ", ".join(
            f"{key} {value}"
            for key, value in manifest.get("provenance", {}).items()
            if key in ("rdcache", "torch", "device", "precision")
        ),
        "fingerprint": store.fingerprint.digest,
    }
