"""A store in a bucket, read through the download cache.

A shard is downloaded whole when it is first touched, and compared with its receipt. All else of a
store is small, is read at once when the store is opened, and is kept once it fits the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from rdcache.errors import (
    CorruptShardError,
    StoreFormatError,
    StoreNotFoundError,
)
from rdcache.store import arrays
from rdcache.store.columns import (
    read_columns,
    read_receipts,
    require_believable,
    require_metadata,
)
from rdcache.store.compression import largest_shard
from rdcache.store.download_cache import SHARDS, DownloadCache, touch
from rdcache.store.locations import RemotePath
from rdcache.store.manifest import (
    MANIFEST_BYTES,
    digests_of,
    layout_of,
    manifest_in,
    require_root,
)
from rdcache.store.objects import mapped_file
from rdcache.store.remote import RemoteObjects, offline, offline_error
from rdcache.store.shard import index_bytes, is_whole
from rdcache.store.spec import STORED, ShardRef, TapSpec

TRIES = 3
# By process and file: of several threads that need a file only one downloads it.
_downloads: dict[tuple[int, Path], Lock] = {}


class CachedObjects:
    """The objects of a complete store in a bucket, read through the cache.

    All but the shards is small and read at once when the store is opened; its digests are checked
    before they are kept.
    """

    lasting = False

    def __init__(self, remote: RemoteObjects, manifest: Mapping[str, Any], cache: DownloadCache):
        self.remote = remote
        self.location = remote.location
        self.cache = cache
        self.layout = layout_of(manifest, self.location)
        self.downloads = 0
        self._small: dict[str, bytes] = {}
        self._shards: dict[str, _Shard] = {}
        self._read_small_objects(manifest)

    def read(self, name: str, most: int | None = None) -> bytes | None:
        """The bytes of a small object, None where there is none."""
        return self._small.get(name)

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """The bytes of many small objects, in the order asked for."""
        return [self._small.get(name) for name in names]

    def get(self, name: str, nbytes: int) -> bytes | None:
        """The bytes of a small object of a known length; None where it is missing or of another."""
        data = self._small.get(name)
        return data if data is not None and len(data) == nbytes else None

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return name in self._small or name in self._shards

    def sizes(self, prefix: str) -> dict[str, int]:
        """Names of all objects below a folder, with their lengths, as the bucket lists them."""
        return self.remote.sizes(prefix)

    def use(self, names: Iterable[str]) -> None:
        """Mark the files of shards as just used."""
        for name in names:
            touch(self._file(name))

    def gone(self, names: Iterable[str]) -> set[str]:
        """Which shards are not in the cache any more."""
        return {name for name in names if not self._file(name).is_file()}

    def mapped(self, name: str, most: int | None = None) -> np.ndarray | None:
        """A shard as uint8 (bytes,), read only, downloaded if it is not kept.

        Raises:
            BucketError: it is not kept, and the bucket does not answer or may not be asked.
            CorruptShardError: it is not what its receipt says.
        """
        if (shard := self._shards.get(name)) is None:
            return None
        key = shard.key
        with _downloads.setdefault((os.getpid(), self.cache.folder / key), Lock()):
            if (path := self.cache.find(key)) is not None:
                # A power cut or a bad disk; what was downloaded just now has its digest.
                if (data := mapped_file(path)) is not None and shard.fits(data):
                    return data
                self.cache.drop(key)
            for _ in range(TRIES):
                # Another process may need the room as soon as it is there.
                if (data := mapped_file(self._download(name, shard))) is not None:
                    return data
        raise self.cache.too_small()

    def _file(self, name: str) -> Path:
        return self.cache.folder / self._shards[name].key

    def _download(self, name: str, shard: _Shard) -> Path:
        size = self.remote.size(name)
        if size is None:
            raise self._damaged(name, "it is missing")
        if not shard.least <= size <= shard.most:
            raise self._damaged(name, f"it has {size} bytes, where at most {shard.most} belong")

        def write(path: Path) -> None:
            for _ in range(TRIES):
                self.remote.download(name, path, size)
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").digest() == shard.digest:
                        return
            raise self._damaged(name, "it does not match its receipt")

        path = self.cache.keep(shard.key, size, write)
        self.downloads += 1
        return path

    def _read_small_objects(self, manifest: Mapping[str, Any]) -> None:
        """All objects but the shards, in one file of the cache."""
        key = f"stores/{manifest['root']}.zip"
        if (kept := _unpacked(self.cache.read(key))) is not None:
            with contextlib.suppress(StoreFormatError):
                self._check(kept, manifest)
                return
        self.cache.drop(key)
        require_believable(self.remote, self.layout)
        names = [*arrays.all_documents(self.layout, ())]
        names += [
            arrays.column_object(document, name)
            for name, document in arrays.column_documents(self.layout, ("",)).items()
        ]
        for shard in self.layout.shards():
            names += [arrays.outcome_object(shard), arrays.receipt_object(shard)]
        sizes = self.remote.sizes("")
        # More than bases and a few numbers for each image and view is not what we have written.
        bases = sum(
            4 * tap.shape[tap.channel_axis] * (tap.projected_from or 0) for tap in self.layout.taps
        )
        bound = 2**20 + 2**10 * self.layout.samples * self.layout.views + bases
        names = [name for name in names if sizes.get(name, bound + 1) <= bound]
        data = self.remote.read_all(names)
        found = {name: it for name, it in zip(names, data, strict=True) if it is not None}
        self._check(found, manifest)
        self.cache.keep_bytes(key, _packed(found))

    def _check(self, small: dict[str, bytes], manifest: Mapping[str, Any]) -> None:
        """Take these objects for the store's, if they are what its manifest says.

        Raises:
            StoreFormatError: they are not.
        """
        self._small = small
        digests = digests_of(manifest, self.location)
        require_metadata(self, self.layout, digests.get("metadata"))
        read_columns(self, self.layout, digests, complete=True)
        receipts = read_receipts(self, self.layout, digests.get("receipt"))
        for ref in self.layout.shards():
            for tap, digest in zip(self.layout.taps, receipts[ref.view, ref.index], strict=True):
                name = arrays.tap_object(tap, ref.view, ref.index)
                self._shards[name] = self._shard(tap, ref, digest.tobytes())

    def _shard(self, tap: TapSpec, ref: ShardRef, digest: bytes) -> _Shard:
        chunks = self.layout.shard_samples
        outcome = self._small.get(arrays.outcome_object(ref), b"")
        present = outcome.count(STORED)
        most = largest_shard(tap, present, chunks) if len(outcome) == chunks else 0
        return _Shard(digest, chunks, present, most if tap.codec == "none" else 0, most)

    def _damaged(self, name: str, why: str) -> CorruptShardError:
        return CorruptShardError(
            "a shard in this bucket cannot be used.",
            store=self.location,
            file=name,
            why=why,
            next=f"rdcache verify {self.location} --repair, or rdcache rm {self.location} and push "
            "it again",
        )


@dataclass(frozen=True)
class _Shard:
    """What is known of a shard object before it is downloaded.

    Attributes:
        digest: sha256, as its receipt says.
        chunks: samples that a full shard has.
        present: samples that it has.
        least, most: what its length lies between.
    """

    digest: bytes
    chunks: int
    present: int
    least: int
    most: int

    @property
    def key(self) -> str:
        """Its name in the cache."""
        digest = self.digest.hex()
        return f"{SHARDS}/{digest[:2]}/{digest}"

    def fits(self, data: np.ndarray) -> bool:
        """Whether a file that was kept has an index, and the length that this makes it."""
        tail = data[-index_bytes(self.chunks) :].tobytes()
        return self.least <= data.size <= self.most and is_whole(tail, data.size, self.present)


def open_cached(
    location: RemotePath, manifest: Mapping[str, Any], cache: DownloadCache
) -> CachedObjects:
    """The objects of a complete store in a bucket.

    Raises:
        StoreFormatError: the manifest does not match its root, or the receipts not the manifest.
        BucketError: the bucket does not answer.
    """
    require_root(manifest, location)  # it names a file of the cache
    return CachedObjects(RemoteObjects(location), manifest, cache)


def remembered_manifest(location: RemotePath, cache: DownloadCache) -> dict[str, Any]:
    """The manifest of a store in a bucket, or where we are offline, as it was last seen.

    Raises:
        StoreNotFoundError, StoreFormatError: see `read_manifest`.
        BucketError: the bucket does not answer, or we are offline and have never seen the store.
    """
    key = f"manifests/{hashlib.sha256(location.url.encode()).hexdigest()}.json"
    if offline():
        with contextlib.suppress(StoreNotFoundError, StoreFormatError):
            manifest = manifest_in(cache.read(key), location)
            require_root(manifest, location)
            return manifest
        raise offline_error(location)
    document = RemoteObjects(location).read("zarr.json", MANIFEST_BYTES)
    manifest = manifest_in(document, location)
    if manifest.get("complete") is True and document not in (None, cache.read(key)):
        cache.keep_bytes(key, document or b"")
    return manifest


def _packed(objects: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in objects.items():
            archive.writestr(name, content)
    return file.getvalue()


def _unpacked(data: bytes | None) -> dict[str, bytes] | None:
    """The objects of a file that was kept; None where it cannot be read."""
    try:
        with zipfile.ZipFile(io.BytesIO(data or b"")) as archive:
            return {name: archive.read(name) for name in archive.namelist()}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError):
        return None
