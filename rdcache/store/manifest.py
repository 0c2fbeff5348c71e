"""The manifest: a store's description of itself, in its group's attributes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rdcache.errors import StoreFormatError, StoreNotFoundError
from rdcache.store.spec import Fingerprint, StoreLayout, TapSpec

SCHEMA = 1
ATTRIBUTE = "rdcache"
# Entries that are ours to write; all others are facts of whoever fills the store.
STRUCTURE = ("schema", "complete", "created", "fingerprint", "taps", "layout")


def build_manifest(
    layout: StoreLayout, fingerprint: Fingerprint, created: str, facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest of a store under way; `complete` is set at its commit."""
    return {
        **facts,
        "schema": SCHEMA,
        "complete": False,
        "created": created,
        "fingerprint": {"digest": fingerprint.digest, "parts": dict(fingerprint.parts)},
        "taps": [tap.to_dict() for tap in layout.taps],
        "layout": layout.to_dict(),
    }


def complete_manifest(manifest: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a finished store: `facts` are added, its structure stays as it was."""
    structure = {key: manifest[key] for key in STRUCTURE}
    return {**manifest, **facts, **structure, "complete": True}


def group_document(manifest: Mapping[str, Any]) -> bytes:
    """The `zarr.json` of the store's group."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": {ATTRIBUTE: manifest}}
    return json.dumps(document, indent=2, allow_nan=False).encode()


def read_manifest(location: Path) -> dict[str, Any]:
    """Read and check a store's manifest.

    Raises:
        StoreNotFoundError: no Zarr group with a manifest of ours.
        StoreFormatError: another schema version, or a manifest that contradicts itself.
    """
    try:
        document = json.loads((location / "zarr.json").read_bytes())
        manifest = document["attributes"][ATTRIBUTE]
    except (OSError, KeyError, TypeError):
        raise StoreNotFoundError("there is no rdcache store here.", looked_at=location) from None
    except ValueError:
        raise StoreFormatError("the manifest of this store is no JSON.", store=location) from None
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else manifest
        raise StoreFormatError(
            "this store has another schema version than this rdcache reads.",
            store=location,
            has=found,
            reads=SCHEMA,
            next="update rdcache, or extract again",
        )
    return manifest


def layout_of(manifest: Mapping[str, Any], location: Path) -> StoreLayout:
    """The layout that a manifest describes.

    Raises:
        StoreFormatError: entries are missing or make no sense.
    """
    try:
        layout = manifest["layout"]
        return StoreLayout(
            samples=layout["samples"],
            extents=tuple(layout["extents"]),
            taps=tuple(TapSpec.from_dict(tap) for tap in manifest["taps"]),
            shard_samples=layout["shard_samples"],
        )
    except (KeyError, TypeError, AttributeError):
        raise StoreFormatError("the manifest of this store is not whole.", store=location) from None


def fingerprint_of(manifest: Mapping[str, Any], location: Path) -> Fingerprint:
    """The fingerprint that a manifest holds, checked against its own digest."""
    try:
        fingerprint = Fingerprint(manifest["fingerprint"]["parts"])
        stated = manifest["fingerprint"]["digest"]
    except (KeyError, TypeError):
        raise StoreFormatError("the manifest of this store is not whole.", store=location) from None
    if fingerprint.digest != stated:
        raise StoreFormatError("the manifest's fingerprint is not its digest.", store=location)
    return fingerprint
