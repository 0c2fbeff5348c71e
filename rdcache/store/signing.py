"""Signing a store, after a look at every byte of it."""

from __future__ import annotations

from pathlib import Path

from rdcache.errors import CorruptShardError, StaleStoreError
from rdcache.progress import Progress, ignore
from rdcache.store.locations import Location
from rdcache.store.manifest import ROOT, group_document, read_manifest
from rdcache.store.objects import objects_at
from rdcache.store.opening import open_directly
from rdcache.store.signatures import signed
from rdcache.store.verification import verify_store


def sign_store(location: Location, key: Path, on_progress: Progress = ignore) -> str:
    """Verify a complete store and add a signature to its manifest.

    Args:
        key: PEM file of the private key.

    Returns:
        The fingerprint of the key.

    Raises:
        StoreIncompleteError, StoreFormatError: it is not finished, or contradicts itself.
        CorruptShardError: it is damaged.
        UsageError: this is no private key.
        StoreWriteError: the manifest cannot be written.
    """
    store = open_directly(location)
    signed(store.manifest, key)  # a wrong key is told before a long look
    problems = verify_store(location, on_progress)
    if problems:
        raise CorruptShardError(
            "a damaged store is not signed.",
            store=location,
            first=f"{problems[0].name} {problems[0].what}",
            next=f"rdcache verify {location}",
        )
    # What others have signed meanwhile stays; what they have changed was not looked at.
    now = read_manifest(location)
    if now.get(ROOT) != store.manifest[ROOT]:
        raise StaleStoreError(
            "this store has been changed while it was verified.",
            store=location,
            next="run the same command again",
        )
    manifest, fingerprint = signed(now, key)
    objects_at(location).put("zarr.json", group_document(manifest))
    return fingerprint
