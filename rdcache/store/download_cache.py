"""What is read from buckets is kept on this machine, up to a limit.

A shard is downloaded whole when it is first touched, compared with its receipt, and kept under its
own digest, so that no file of the cache can be stale, two stores that hold the same shard share it,
and a damaged download never gets in. When room is needed, what was used longest ago goes.

The cache is one folder for all processes of a user: `downloads` in the one that `RDCACHE_CACHE`
names. `RDCACHE_CACHE_SIZE` limits it, and with `RDCACHE_OFFLINE=1` nothing but the cache is asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rdcache.errors import BucketError, CorruptShardError, FileWriteError, UsageError
from rdcache.files import user_cache
from rdcache.store import arrays
from rdcache.store.columns import read_receipts
from rdcache.store.locations import RemotePath
from rdcache.store.manifest import digests_of, layout_of, manifest_in, require_root
from rdcache.store.objects import TEMPORARY
from rdcache.store.remote import RemoteObjects

DEFAULT_SIZE = "50 GB"
UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
# A download that is this old has no process any more.
OLD_SECONDS = 3_600
TRIES = 3


@dataclass(frozen=True)
class DownloadCache:
    """A folder of files that are named by what they hold, none of them needed.

    Attributes:
        limit: bytes of all files together, downloads under way included.
    """

    folder: Path
    limit: int

    @classmethod
    def of_environment(cls) -> DownloadCache:
        """The user's cache, as the environment variables say.

        Raises:
            UsageError: the size is none.
        """
        limit = os.environ.get("RDCACHE_CACHE_SIZE") or DEFAULT_SIZE
        return cls(user_cache() / "downloads", parse_size(limit))

    def read(self, key: str) -> bytes | None:
        """A small file, None where it is not kept."""
        path = self.folder / key
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            _touch(path)
            return data
        return None

    def find(self, key: str) -> Path | None:
        """A file that is kept, marked as just used; None where it is not."""
        path = self.folder / key
        if not path.is_file():
            return None
        _touch(path)
        return path

    def keep(self, key: str, size: int, write: Callable[[Path], None]) -> Path:
        """Add a file, once room has been made for it.

        Args:
            write: fills a file that has its full size already.

        Raises:
            UsageError: it is larger than the whole cache may be.
            FileWriteError: the cache cannot be written.
        """
        path = self.folder / key
        partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._make_room(size)
                # At its full length from the start, so that others count it.
                with partial.open("wb") as file:
                    file.truncate(size)
            try:
                write(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as error:
            if isinstance(error, BucketError | CorruptShardError):
                raise
            raise FileWriteError(
                "the download cache cannot be written.",
                folder=self.folder,
                why=error.strerror or error,
                next="free some space, or let RDCACHE_CACHE name another folder",
            ) from error
        return path

    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size, _ in self._files())

    def _files(self) -> list[tuple[float, int, Path]]:
        """Last use, length and path of each file."""
        found = []
        for folder, _, names in os.walk(self.folder):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    path = Path(folder, name)
                    status = path.stat()
                    found.append((status.st_mtime, status.st_size, path))
        return found

    def _make_room(self, size: int) -> None:
        if size > self.limit:
            raise UsageError(
                "the download cache is smaller than one file of this store.",
                folder=self.folder,
                limit=f"{self.limit / 1e6:.1f} MB",
                needed=f"{size / 1e6:.1f} MB",
                next="let RDCACHE_CACHE_SIZE allow more, or `rdcache pull` the store",
            )
        files = sorted(self._files())
        excess = sum(length for _, length, _ in files) + size - self.limit
        for used, length, path in files:
            if excess <= 0:
                return
            if path.name.endswith(TEMPORARY) and time.time() - used < OLD_SECONDS:
                continue
            path.unlink(missing_ok=True)
            excess -= length

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Only one process at a time makes room; the lock goes with the process."""
        with (self.folder / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


class CachedObjects:
    """The objects of a complete store in a bucket, read through the cache.

    All but the shards is small and read at once when the store is opened; its digests are checked
    by whoever opens the store, those of the receipts here.
    """

    def __init__(self, remote: RemoteObjects, manifest: Mapping[str, Any], cache: DownloadCache):
        self.remote = remote
        self.location = remote.location
        self.cache = cache
        self.layout = layout_of(manifest, self.location)
        self._small = self._small_objects(manifest)
        self._digests = dict(self._shard_digests(manifest))

    def read(self, name: str) -> bytes | None:
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
        return name in self._small or name in self._digests

    def sizes(self, prefix: str) -> dict[str, int]:
        """Names of all objects below a folder, with their lengths, as the bucket lists them."""
        return self.remote.sizes(prefix)

    def kept(self, name: str) -> bool:
        """Whether a shard's file is still in the cache."""
        return (self.cache.folder / self._key(name)).is_file()

    def mapped(self, name: str) -> np.ndarray | None:
        """A shard as uint8 (bytes,), read only, downloaded if it is not kept.

        Raises:
            BucketError: it is not kept, and the bucket does not answer or may not be asked.
            CorruptShardError: it is not what its receipt says.
        """
        if name not in self._digests:
            return None
        for _ in range(TRIES):
            path = self.cache.find(self._key(name)) or self._download(name)
            # Another process may have needed the room between the two.
            with contextlib.suppress(FileNotFoundError):
                return np.memmap(path, np.uint8, mode="r").view(np.ndarray)
        raise UsageError(
            "the download cache is too small for all who use it.",
            folder=self.cache.folder,
            next="let RDCACHE_CACHE_SIZE allow more",
        )

    def _key(self, name: str) -> str:
        digest = self._digests[name].hex()
        return f"shards/{digest[:2]}/{digest}"

    def _download(self, name: str) -> Path:
        require_online(self.location)
        size = self.remote.size(name)
        if size is None:
            raise self._damaged(name, "it is missing")

        def write(path: Path) -> None:
            for _ in range(TRIES):
                self.remote.download(name, path, size)
                with path.open("rb") as file:
                    if hashlib.file_digest(file, "sha256").digest() == self._digests[name]:
                        return
            raise self._damaged(name, "it does not match its receipt")

        return self.cache.keep(self._key(name), size, write)

    def _damaged(self, name: str, why: str) -> CorruptShardError:
        return CorruptShardError(
            "a shard in this bucket cannot be used.",
            store=self.location,
            file=name,
            why=why,
            next=f"rdcache verify {self.location}, or push the store again",
        )

    def _small_objects(self, manifest: Mapping[str, Any]) -> dict[str, bytes]:
        """All objects but the shards, in one file of the cache."""
        key = f"stores/{manifest['root']}.zip"
        names = [*arrays.all_documents(self.layout, ())]
        names += [
            arrays.column_object(document, name)
            for name, document in arrays.column_documents(self.layout, ("",)).items()
        ]
        for shard in self.layout.shards():
            names += [arrays.outcome_object(shard), arrays.receipt_object(shard)]
        if (kept := self.cache.read(key)) is not None:
            return _unpacked(kept)
        require_online(self.location)
        sizes = self.remote.sizes("")
        # More than bases and a few numbers for each image and view is not what we have written.
        bases = sum(
            4 * tap.shape[tap.channel_axis] * (tap.projected_from or 0) for tap in self.layout.taps
        )
        bound = 2**20 + 2**10 * self.layout.samples * self.layout.views + bases
        names = [name for name in names if sizes.get(name, bound + 1) <= bound]
        data = self.remote.read_all(names)
        found = {name: it for name, it in zip(names, data, strict=True) if it is not None}
        content = _packed(found)
        self.cache.keep(key, len(content), lambda path: _write(path, content))
        return found

    def _shard_digests(self, manifest: Mapping[str, Any]) -> Iterator[tuple[str, bytes]]:
        """The sha256 of each shard object, from receipts that match the manifest."""
        stated = digests_of(manifest, self.location).get("receipt")
        receipts = read_receipts(self, self.layout, stated)
        for shard in self.layout.shards():
            for tap, digest in zip(
                self.layout.taps, receipts[shard.view, shard.index], strict=True
            ):
                yield arrays.tap_object(tap, shard.view, shard.index), digest.tobytes()


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
        document = cache.read(key)
        if document is None:
            require_online(location)
        return manifest_in(document, location)
    document = RemoteObjects(location).read("zarr.json")
    manifest = manifest_in(document, location)
    if document is not None and document != cache.read(key):
        content = document
        cache.keep(key, len(content), lambda path: _write(path, content))
    return manifest


def offline() -> bool:
    """Whether buckets may not be asked."""
    return os.environ.get("RDCACHE_OFFLINE", "") not in ("", "0")


def require_online(location: RemotePath) -> None:
    """Refuse to ask a bucket while offline.

    Raises:
        BucketError: RDCACHE_OFFLINE is set.
    """
    if offline():
        raise BucketError(
            "this part of the store is not kept on this machine, and RDCACHE_OFFLINE is set.",
            address=location,
            next="unset RDCACHE_OFFLINE, or `rdcache pull` the store while there is a network",
        )


def parse_size(text: str) -> int:
    """Bytes of a size such as `50 GB`.

    Raises:
        UsageError: it is none.
    """
    number = text.strip().upper()
    unit = next((unit for unit in UNITS if number.endswith(unit)), "")
    try:
        size = int(float(number.removesuffix(unit)) * UNITS.get(unit, 1))
    except (ValueError, OverflowError):
        size = -1
    if size < 0:
        raise UsageError("this is no size.", got=text, expected="a number with KB, MB, GB or TB")
    return size


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):
        os.utime(path)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _packed(objects: Mapping[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in objects.items():
            archive.writestr(name, content)
    return file.getvalue()


def _unpacked(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
