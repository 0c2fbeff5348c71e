"""Objects of a bucket: S3, Google Cloud Storage, Azure, and what speaks their protocols.

The work is obstore's; endpoint, region and credentials come from the environment variables that
every tool of these clouds reads, and are written nowhere. Each request is tried again for a while
when the server fails or the connection drops; what fails after that is one clear sentence.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import ObjectStore
from zarr.storage import ObjectStore as ZarrStore

from rdcache.errors import BucketError, StoreWriteError, UsageError
from rdcache.store.connecting import advice, connect, patience, reason
from rdcache.store.locations import RemotePath

# Small objects asked for at once, and pieces of a large one.
REQUESTS_AT_ONCE = 16
PIECE_BYTES = 8 * 2**20
IN_MEMORY = 2  # objects of one tap that stay in memory after they were read
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 5.0
# What no waiting mends.
FINAL = (
    AlreadyExistsError,
    InvalidPathError,
    NotSupportedError,
    PermissionDeniedError,
    PermissionError,
    UnauthenticatedError,
)
Answer = TypeVar("Answer")
_asking: int | None = None  # the process that has asked a bucket first


class RemoteObjects:
    """A prefix of a bucket. Safe to pickle. In a child of a process that has asked a bucket before
    it was forked nothing answers, as obstore's threads are not there: it is refused.

    A PUT is whole or not at all on its own, so there are no temporary objects.
    """

    lasting = False

    def __init__(self, location: RemotePath) -> None:
        self.location = location
        self.downloads = 0
        self._connection: ObjectStore = connect(location)
        self._patience = patience()

    def __reduce__(self) -> tuple[Any, ...]:
        return RemoteObjects, (self.location,)

    @property
    def _bucket(self) -> ObjectStore:
        """The connection, for one request.

        Raises:
            BucketError: RDCACHE_OFFLINE is set.
            UsageError: this process was forked from one that has asked a bucket.
        """
        global _asking
        if offline():
            raise offline_error(self.location)
        _asking = _asking or os.getpid()
        if _asking != os.getpid():
            raise UsageError(
                "a process that has asked a bucket cannot be forked: start workers with spawn.",
                address=self.location,
            )
        return self._connection

    def read(self, name: str, most: int | None = None) -> bytes | None:
        """The bytes of a small object, None where there is none, or one of more than `most` bytes.

        Raises:
            BucketError: the bucket does not answer, or may not be read.
        """
        return self._fetch(name, most=most)

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """The bytes of many small objects, in the order asked for; several at once."""
        with ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="bucket") as pool:
            return list(pool.map(self.read, names))

    def get(self, name: str, nbytes: int) -> bytes | None:
        """The bytes of an object of a known length; None where it is missing or of another length,
        so that a damaged store never makes us read more than it should hold.
        """
        return self._fetch(name, nbytes)

    def mapped(self, name: str, most: int | None = None) -> np.ndarray | None:
        """A large object as uint8 (bytes,), in memory; None where there is none, where it is empty
        or of more than `most` bytes.
        """
        size = self.size(name)
        if not size or (most is not None and size > most):
            return None
        data = np.empty(size, np.uint8)
        self._fill(name, size, lambda start, piece: _copy(data, start, piece))
        data.flags.writeable = False
        self.downloads += 1
        return data

    def use(self, names: Iterable[str]) -> None:
        """Nothing to do."""

    def gone(self, names: Iterable[str]) -> set[str]:
        """All but the last few: memory is not for whole stores."""
        return set(list(names)[:-IN_MEMORY])

    def download(self, name: str, path: Path, size: int) -> None:
        """Write an object of a known size into a file that is there already.

        Raises:
            BucketError: it could not be read whole.
            OSError: the file cannot be written.
        """
        with path.open("r+b") as file:
            descriptor = file.fileno()
            self._fill(name, size, lambda start, piece: _write_at(descriptor, start, piece))
            os.fsync(descriptor)

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """The length of an object in bytes, None where there is none."""
        facts = self._facts(name)
        return None if facts is None else int(facts["size"])

    def tail(self, name: str, size: int, nbytes: int) -> bytes | None:
        """The last bytes of an object of `size` bytes; None where there are not so many."""
        return self._piece(name, size - nbytes, size) if size >= nbytes else None

    def modified(self, name: str) -> float | None:
        """When an object was last written, in seconds since 1970; None where there is none."""
        facts = self._facts(name)
        return None if facts is None else float(facts["last_modified"].timestamp())

    def sizes(self, prefix: str) -> dict[str, int]:
        """Names of all objects below a folder, with their lengths in bytes."""
        with self._reading():
            found = self._ask(lambda: obstore.list(self._bucket, prefix or None).collect())
        return {entry["path"]: int(entry["size"]) for entry in found}

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below a folder, sorted; without the prefix."""
        with self._reading():
            found = self._ask(lambda: obstore.list_with_delimiter(self._bucket, prefix or None))
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def put(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write an object whole, in place of any other.

        Raises:
            StoreWriteError: it could not be written; what was there before is there still.
        """
        data = b"".join(pieces)
        with self._writing(name):
            self._ask(lambda: obstore.put(self._bucket, name, data, chunk_size=PIECE_BYTES))

    def create(self, name: str, data: bytes) -> bool:
        """Write a new object whole, unless there is one of this name already: only one of several
        that try succeeds.

        Raises:
            StoreWriteError: it could not be written.
        """
        try:
            with self._writing(name):
                self._ask(lambda: obstore.put(self._bucket, name, data, mode="create"))
        except AlreadyExistsError:
            # It may be ours: the answer to a request that succeeded got lost, and it was repeated.
            return bool(data) and self.read(name) == data
        return True

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects; those that are not there are no error.

        Raises:
            StoreWriteError: they may not be deleted.
        """
        if paths := list(names):
            with self._writing(paths[0]):
                self._ask(lambda: obstore.delete(self._bucket, paths))

    def sync(self) -> None:
        """Nothing to do: what a bucket has acknowledged it keeps."""

    def zarr_store(self) -> ZarrStore:
        """The same prefix for zarr-python, read only."""
        return ZarrStore(self._bucket, read_only=True)

    def remove_all(self) -> None:
        """Delete everything below the location."""
        self.delete(sorted(self.sizes("")))

    def clean(self, alive: Callable[[str], bool] = lambda token: False) -> None:
        """Nothing to do: a PUT that was interrupted has left nothing that can be seen."""

    def _facts(self, name: str) -> Any:
        with self._reading(name):
            return self._ask(lambda: _unless_missing(lambda: obstore.head(self._bucket, name)))

    def _fetch(self, name: str, nbytes: int | None = None, most: int | None = None) -> bytes | None:
        """A small object, None where it is missing or not of the length that it should have."""

        def request() -> bytes | None:
            answer = _unless_missing(lambda: obstore.get(self._bucket, name))
            if answer is None:
                return None
            size = answer.meta["size"]
            if nbytes not in (None, size) or (most is not None and size > most):
                return None
            return bytes(answer.bytes())

        with self._reading(name):
            return self._ask(request)

    def _fill(self, name: str, size: int, put: Callable[[int, memoryview], None]) -> None:
        """Read a large object in pieces, several at once."""

        def fetch(start: int) -> None:
            stop = min(start + PIECE_BYTES, size)
            put(start, memoryview(self._piece(name, start, stop)))

        with ThreadPoolExecutor(REQUESTS_AT_ONCE // 2, thread_name_prefix="bucket") as pool:
            list(pool.map(fetch, range(0, size, PIECE_BYTES)))

    def _piece(self, name: str, start: int, stop: int) -> bytes:
        """Bytes from start to stop of an object that has so many."""
        with self._reading(name):
            return self._ask(
                lambda: bytes(obstore.get_range(self._bucket, name, start=start, end=stop))
            )

    def _ask(self, request: Callable[[], Answer]) -> Answer:
        """Make a request until it succeeds, fails for good, or patience ends.

        obstore asks again where the server says that it failed, but not where its answer breaks
        off, or gets lost at the end of a large upload.
        """
        began, pause = time.monotonic(), FIRST_PAUSE
        while True:
            try:
                return request()
            except FINAL:
                raise
            except (BaseError, FileNotFoundError, TimeoutError) as error:
                if "NoSuchBucket" in str(error) or time.monotonic() - began > self._patience:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    @contextmanager
    def _reading(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError, PermissionError, TimeoutError) as error:
            raise self._failure(name, reason(error)) from error

    @contextmanager
    def _writing(self, name: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError, PermissionError, TimeoutError) as error:
            if isinstance(error, AlreadyExistsError):
                raise
            raise StoreWriteError(
                "the store cannot be written.",
                file=self.location / name,
                why=reason(error),
                next=f"{advice(self.location)}; then run the same command again",
            ) from error

    def _failure(self, name: str, why: str) -> BucketError:
        return BucketError(
            "the bucket cannot be read.",
            address=self.location / name if name else self.location,
            why=why,
            next=advice(self.location),
        )


def offline() -> bool:
    """Whether buckets may not be asked."""
    return os.environ.get("RDCACHE_OFFLINE", "") not in ("", "0")


def offline_error(location: RemotePath) -> BucketError:
    """Say that a bucket would have to be asked."""
    return BucketError(
        "this is not kept on this machine, and no bucket is asked while RDCACHE_OFFLINE is set.",
        address=location,
        next="unset RDCACHE_OFFLINE, or `rdcache pull` the store while there is a network",
    )


def _unless_missing(request: Callable[[], Answer]) -> Answer | None:
    """The answer, None where the object is not there; that the bucket is not there is an error."""
    try:
        return request()
    except FileNotFoundError as error:
        if "NoSuchBucket" in str(error):
            raise
        return None


def _copy(data: np.ndarray, start: int, piece: memoryview) -> None:
    data[start : start + len(piece)] = np.frombuffer(piece, np.uint8)


def _write_at(descriptor: int, start: int, piece: memoryview) -> None:
    while piece:
        written = os.pwrite(descriptor, piece, start)
        piece, start = piece[written:], start + written
