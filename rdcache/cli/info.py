"""`rdcache info`: one store described."""

from __future__ import annotations

import click

from rdcache.cli import options
from rdcache.cli.output import in_bytes, json_option, print_facts, print_json
from rdcache.store import Store, newest_store, open_store
from rdcache.store.locations import Location


@click.command(epilog="Example:  rdcache info ~/.cache/rdcache/stores/isic/pmc-clip/3f9c21d0a4b7")
@click.argument("store", required=False, type=options.LOCATION)
@options.root
@json_option
def command(store: Location | None, root: Location | None, as_json: bool) -> None:
    """Describe STORE; without it, the newest complete store under the root."""
    opened = open_store(store or newest_store(root), allow_incomplete=True)
    if as_json:
        print_json(opened.manifest)
    else:
        print_facts(f"{opened.location}", _facts(opened))


def _facts(store: Store) -> dict[str, object]:
    manifest = store.manifest
    dataset, teacher = manifest["dataset"], manifest["teacher"]
    taps = [
        f"{name}  {'×'.join(map(str, tap.shape))} {tap.dtype}, {in_bytes(tap.nbytes)} a sample"
        for name, tap in store.taps.items()
    ]
    splits = [f"{split} {sum(by_class.values())}" for split, by_class in dataset["counts"].items()]
    return {
        "complete": "yes" if store.complete else "no: run the same `rdcache extract` again",
        "teacher": f"{teacher['name']} ({teacher['architecture']})",
        "weights": f"{teacher['weights']['source']}, sha256 {teacher['weights']['sha256'][:12]}…",
        "dataset": f"{dataset['name']}: {', '.join(dataset['classes'])}",
        "samples": f"{store.samples} ({', '.join(splits)})",
        "views": f"{store.views} ({manifest['views']['kind']})",
        "taps": "\n".join(taps),
        "size": in_bytes(store.nbytes),
        "made": manifest["created"],
        "by": ", ".join(
            f"{key} {value}"
            for key, value in manifest.get("provenance", {}).items()
            if key in ("rdcache", "torch", "device", "precision")
        ),
        "fingerprint": store.fingerprint.digest,
    }
