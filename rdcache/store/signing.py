"""Signing a store, after a look at every byte of it."""

from __future__ import annotations

from pathlib import Path

from rdcache.errors import CorruptShardError
from rdcache.progress import Progress, ignore
from rdcache.store.locations import Location
from rdcache.store.manifest import group_document
from rdcache.store.objects import objects_at
from rdcache.store.reader import open_directly
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
    manifest, fingerprint = signed(store.manifest, key)  # a wrong key is told before a long look
    problems = verify_store(location, on_progress)
    if problems:
        raise CorruptShardError(
            "a damaged store is not signed.",
            store=location,
            first=f"{problems[0].name} {problems[0].what}",
            next=f"rdcache verify {location}",
        )
    objects_at(location).put("zarr.json", group_document(manifest))
    return fingerprint
