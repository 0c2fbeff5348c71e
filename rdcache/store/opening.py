"""Opening a store for reading, in a folder or in a bucket."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rdcache.errors import StoreIncompleteError
from rdcache.store.locations import Location, RemotePath, as_location
from rdcache.store.manifest import layout_of, read_manifest
from rdcache.store.objects import ReadableObjects, objects_at
from rdcache.store.reader import Store
from rdcache.store.signatures import require_signed


def open_store(
    location: str | os.PathLike[str] | RemotePath,
    *,
    allow_incomplete: bool = False,
    require_signature: str | Path | None = None,
    verify_shards: bool = False,
) -> Store:
    """Open a store for reading, in a folder or a bucket; see `cached_objects.py` for the latter.

    Args:
        location: a folder, or an address such as `s3://team/rdcache/isic/pmc-clip/0123456789ab`.
        allow_incomplete: open one whose extraction has not finished, for a look at it.
        require_signature: PEM file of a public key. A store that is not signed by it is refused,
            and every shard is compared with what was signed when it is first touched.
        verify_shards: compare each payload with its crc32c when it is first read, once for each
            process; a batch with one that does not match is a `CorruptShardError`.

    Raises:
        StoreNotFoundError: no store lies there.
        StoreFormatError: another schema, or arrays that contradict the manifest.
        StoreIncompleteError: its extraction has not finished.
        SignatureError: it is not signed as asked for.
        BucketError: the bucket does not answer.
    """
    place = as_location(location)
    if not isinstance(place, RemotePath):
        objects: ReadableObjects = objects_at(place)
        manifest = read_manifest(place)
    else:
        objects, manifest = _through_the_cache(place)
    return _open(objects, manifest, allow_incomplete, require_signature, verify_shards)


def open_directly(
    location: Location,
    *,
    allow_incomplete: bool = False,
    require_signature: str | Path | None = None,
) -> Store:
    """Open a store without the download cache, for a look or to copy it: of what is read from a
    bucket hardly anything is kept, so that batches in random order should not be.

    Args and errors are those of `open_store`.
    """
    objects, manifest = objects_at(location), read_manifest(location)
    return _open(objects, manifest, allow_incomplete, require_signature)


def _open(
    objects: ReadableObjects,
    manifest: dict[str, Any],
    allow_incomplete: bool,
    require_signature: str | Path | None,
    verify_shards: bool = False,
) -> Store:
    place = objects.location
    # Of a store under way nothing else is looked at: a crash may have left its arrays between two
    # versions, which the next extraction puts right.
    if manifest.get("complete") is not True and not allow_incomplete:
        total = layout_of(manifest, place).shard_count
        raise incomplete_error(place, min(len(objects.sizes("receipt/c")), total), total)
    if require_signature is None:
        return Store(objects, manifest, check_payloads=verify_shards)
    require_signed(manifest, place, Path(require_signature))
    # Receipts say all that checksums do.
    return Store(objects, manifest, check_receipts=True)


def _through_the_cache(location: RemotePath) -> tuple[ReadableObjects, dict[str, Any]]:
    """Objects and manifest of a store in a bucket; one that is not complete is not kept."""
    objects = objects_at(location)
    # They need obstore, as `objects_at` has found out.
    from rdcache.store.cached_objects import open_cached, remembered_manifest
    from rdcache.store.download_cache import DownloadCache

    cache = DownloadCache.of_environment()
    manifest = remembered_manifest(location, cache)
    if manifest.get("complete") is not True:
        return objects, manifest
    return open_cached(location, manifest, cache), manifest


def incomplete_error(location: Location, there: int, total: int) -> StoreIncompleteError:
    """Say how much of a store is there and how to go on."""
    return StoreIncompleteError(
        f"this store is incomplete: {there} of {total} shards are there.",
        store=location,
        next="run the `rdcache extract` that makes it again; it goes on where it stopped",
    )
