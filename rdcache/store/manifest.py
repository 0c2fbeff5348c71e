"""The manifest: a store's description of itself, in its group's attributes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from rdcache.errors import StoreFormatError, StoreNotFoundError
from rdcache.store.links import inside
from rdcache.store.locations import Location, RemotePath
from rdcache.store.objects import objects_at
from rdcache.store.spec import Fingerprint, StoreLayout, TapSpec

SCHEMA = 1
ATTRIBUTE = "rdcache"
# Entries that are ours to write; all others are facts of whoever fills the store.
STRUCTURE = ("schema", "complete", "created", "fingerprint", "taps", "layout", "digests")
ROOT = "root"
SIGNATURES = "signatures"  # of the root, by public key
BESIDE = (ROOT, SIGNATURES)  # entries of a finished store that its root does not cover
COMMITTED = ("outcome", "receipt", "metadata")  # digests that only a complete store has
MANIFEST_BYTES = 2**28  # more is not read from a bucket; a million paths take 10**8
DEEPEST = 64  # levels of a manifest; ours have about ten
AGAIN = "delete this store's folder and run its `rdcache extract` again"


def build_manifest(
    layout: StoreLayout,
    fingerprint: Fingerprint,
    created: str,
    digests: Mapping[str, str],
    facts: Mapping[str, Any],
) -> dict[str, Any]:
    """The manifest of a store under way; `complete` is set at its commit.

    Args:
        digests: sha256 of the chunk of each column that describes samples and views.
    """
    return {
        **facts,
        "schema": SCHEMA,
        "complete": False,
        "created": created,
        "fingerprint": {"digest": fingerprint.digest, "parts": dict(fingerprint.parts)},
        "taps": [tap.to_dict() for tap in layout.taps],
        "layout": layout.to_dict(),
        "digests": dict(digests),
    }


def complete_manifest(
    manifest: Mapping[str, Any], digests: Mapping[str, str], facts: Mapping[str, Any]
) -> dict[str, Any]:
    """The manifest of a finished store: `facts` are added, its structure stays as it was.

    Args:
        digests: of `outcome` and `receipt`, which are complete now.
    """
    structure = {key: manifest[key] for key in STRUCTURE}
    structure["digests"] = {**manifest["digests"], **digests}
    whole = {**manifest, **facts, **structure, "complete": True}
    return {**whole, ROOT: root_of(whole)}


def unfinished_manifest(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest of a finished store that is to be mended: without what its commit added."""
    columns = {k: v for k, v in manifest["digests"].items() if k not in COMMITTED}
    entries = {key: value for key, value in manifest.items() if key not in BESIDE}
    return {**entries, "digests": columns, "complete": False}


def root_of(manifest: Mapping[str, Any]) -> str:
    """The sha256 of all entries but the root itself and its signatures, as canonical JSON.

    Among the entries is the digest of the receipts, which hold the digest of every shard, so this
    is the root of a Merkle tree over every number of the store.
    """
    entries = {key: value for key, value in manifest.items() if key not in BESIDE}
    text = json.dumps(entries, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def require_root(manifest: Mapping[str, Any], location: Location) -> None:
    """Compare a finished store's manifest with its own root.

    Raises:
        StoreFormatError: they differ.
    """
    if manifest.get(ROOT) != root_of(manifest):
        raise StoreFormatError(
            "the manifest of this store does not match its own digest.", store=location, next=AGAIN
        )


def group_document(manifest: Mapping[str, Any]) -> bytes:
    """The `zarr.json` of the store's group."""
    document = {"zarr_format": 3, "node_type": "group", "attributes": {ATTRIBUTE: manifest}}
    return json.dumps(document, indent=2, allow_nan=False).encode()


def read_manifest(location: Location) -> dict[str, Any]:
    """Read and check a store's manifest.

    Raises:
        StoreNotFoundError: no Zarr group with a manifest of ours.
        StoreFormatError: another schema version, or a manifest that contradicts itself.
        UnsafeFileError: it is a link that leads out of the store.
    """
    return manifest_in(_group_document(location), location)


def _group_document(location: Location) -> bytes | None:
    if isinstance(location, RemotePath):
        return objects_at(location).read("zarr.json", MANIFEST_BYTES)
    path = inside(location, "zarr.json")
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreFormatError(
            "this store cannot be read.", store=location, why=error.strerror
        ) from None


def manifest_in(document: bytes | None, location: Location) -> dict[str, Any]:
    """The manifest in the `zarr.json` of a store's group, checked.

    Raises:
        StoreNotFoundError: there is none, or it is no manifest of ours.
        StoreFormatError: see `read_manifest`.
    """
    try:
        group = json.loads(document or b"null", parse_constant=_refuse, parse_float=_finite)
        manifest = group["attributes"][ATTRIBUTE]
    except (KeyError, TypeError):
        raise StoreNotFoundError("there is no rdcache store here.", looked_at=location) from None
    except (ValueError, RecursionError):
        raise StoreFormatError(
            "the manifest of this store is no JSON.", store=location, next=AGAIN
        ) from None
    require_known(manifest, location)
    return dict(manifest)


def require_known(manifest: Any, location: Location) -> None:
    """Refuse what is no manifest of this schema, or nests so deeply that writing it would exhaust
    Python's stack.

    Raises:
        StoreFormatError: it is or does.
    """
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        found = manifest.get("schema") if isinstance(manifest, dict) else manifest
        raise StoreFormatError(
            "this store has another schema version than this rdcache reads.",
            store=location,
            has=found,
            reads=SCHEMA,
            next="update rdcache, or extract again",
        )
    if _depth(manifest, DEEPEST) > DEEPEST:
        raise StoreFormatError("the manifest of this store nests too deeply.", store=location)


def _depth(value: Any, most: int) -> int:
    """How deeply lists and dictionaries nest; a look no further than one beyond `most`."""
    if not isinstance(value, Mapping | list):
        return 0
    inner = value.values() if isinstance(value, Mapping) else value
    return 1 if most == 0 else 1 + max((_depth(each, most - 1) for each in inner), default=0)


def _finite(number: str) -> float:
    """A number that JSON can write again; 1e999 is none."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is too large")
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def layout_of(manifest: Mapping[str, Any], location: Location) -> StoreLayout:
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
            findings=layout.get("findings", 0),
        )
    except (KeyError, TypeError, AttributeError):
        raise _not_whole(location) from None


def digests_of(manifest: Mapping[str, Any], location: Location) -> dict[str, str]:
    """The sha256 of each small array, by name, in hexadecimal digits."""
    digests = manifest.get("digests")
    if not isinstance(digests, dict) or not all(isinstance(it, str) for it in digests.values()):
        raise _not_whole(location)
    return digests


def fingerprint_of(manifest: Mapping[str, Any], location: Location) -> Fingerprint:
    """The fingerprint that a manifest holds, checked against its own digest."""
    try:
        fingerprint = Fingerprint(manifest["fingerprint"]["parts"])
        stated = manifest["fingerprint"]["digest"]
        digest = fingerprint.digest
    except (KeyError, TypeError, ValueError):  # a number like 1e999 has no canonical form
        raise _not_whole(location) from None
    if digest != stated:
        raise StoreFormatError("the manifest's fingerprint is not its digest.", store=location)
    return fingerprint


def _not_whole(location: Location) -> StoreFormatError:
    return StoreFormatError("the manifest of this store is not whole.", store=location, next=AGAIN)
