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
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import ObjectStore, from_url
from zarr.storage import ObjectStore as ZarrStore

from rdcache.errors import BucketError, StoreWriteError, UsageError
from rdcache.store.locations import RemotePath

# Small objects asked for at once, and pieces of a large one.
REQUESTS_AT_ONCE = 16
PIECE_BYTES = 8 * 2**20
# An answer whose connection drops in its middle; what fails sooner is repeated by obstore.
TRIES = 5
IN_MEMORY = 2  # objects of one tap that stay in memory after they were read
PATIENCE_SECONDS = 60.0
ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AZURE_STORAGE_ENDPOINT")


_asking: int | None = None  # the process that has asked a bucket first


class RemoteObjects:
    """A prefix of a bucket. Safe to pickle. In a child of a process that has asked a bucket before
    it was forked nothing answers, as obstore's threads are not there: it is refused.

    A PUT is whole or not at all on its own, so there are no temporary objects.
    """

    def __init__(self, location: RemotePath) -> None:
        self.location = location
        self.downloads = 0
        self._connection: ObjectStore = _connect(location)

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
            found = obstore.list(self._bucket, prefix=prefix or None).collect()
        return {entry["path"]: int(entry["size"]) for entry in found}

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below a folder, sorted; without the prefix."""
        with self._reading():
            found = obstore.list_with_delimiter(self._bucket, prefix=prefix or None)
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found["common_prefixes"])

    def put(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write an object whole, in place of any other.

        Raises:
            StoreWriteError: it could not be written; what was there before is there still.
        """
        with self._writing(name):
            obstore.put(self._bucket, name, b"".join(pieces), chunk_size=PIECE_BYTES)

    def create(self, name: str, data: bytes) -> bool:
        """Write a new object whole, unless there is one of this name already: only one of several
        that try succeeds.

        Raises:
            StoreWriteError: it could not be written.
        """
        try:
            with self._writing(name):
                obstore.put(self._bucket, name, data, mode="create")
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
                obstore.delete(self._bucket, paths)

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
            try:
                return obstore.head(self._bucket, name)
            except FileNotFoundError:
                return None

    def _fetch(self, name: str, nbytes: int | None = None, most: int | None = None) -> bytes | None:
        """A small object, None where it is missing or not of the length that it should have."""
        for attempt in range(TRIES):
            with self._reading(name):
                try:
                    answer = obstore.get(self._bucket, name)
                except FileNotFoundError:
                    return None
                size = answer.meta["size"]
                if nbytes not in (None, size) or (most is not None and size > most):
                    return None
                if (data := self._body(answer, attempt)) is not None:
                    return data
        raise self._failure(name, "the connection drops again and again")

    def _fill(self, name: str, size: int, put: Callable[[int, memoryview], None]) -> None:
        """Read a large object in pieces, several at once."""

        def fetch(start: int) -> None:
            stop = min(start + PIECE_BYTES, size)
            put(start, memoryview(self._piece(name, start, stop)))

        with ThreadPoolExecutor(REQUESTS_AT_ONCE // 2, thread_name_prefix="bucket") as pool:
            list(pool.map(fetch, range(0, size, PIECE_BYTES)))

    def _piece(self, name: str, start: int, stop: int) -> bytes:
        """Bytes from start to stop of an object that has so many."""
        for attempt in range(TRIES):
            with self._reading(name):
                answer = obstore.get(self._bucket, name, options={"range": (start, stop)})
                data = self._body(answer, attempt)
            if data is not None and len(data) == stop - start:
                return data
        raise self._failure(name, "the connection drops again and again")

    @staticmethod
    def _body(answer: obstore.GetResult, attempt: int) -> bytes | None:
        """The body of an answer; None, after a pause, where the connection dropped."""
        try:
            return bytes(answer.bytes())
        except BaseError:
            time.sleep(0.1 * 2**attempt)
            return None

    @contextmanager
    def _reading(self, name: str = "") -> Iterator[None]:
        try:
            yield
        except (BaseError, FileNotFoundError, PermissionError, TimeoutError) as error:
            raise self._failure(name, _reason(error)) from error

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
                why=_reason(error),
                next="check the network and your rights, and run the same command again",
            ) from error

    def _failure(self, name: str, why: str) -> BucketError:
        return BucketError(
            "the bucket cannot be read.",
            address=self.location / name if name else self.location,
            why=why,
            next="check the address, the network and your credentials, and run the command again",
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


def _connect(location: RemotePath) -> ObjectStore:
    """A connection that is made with the first request.

    Raises:
        UsageError: address or environment variables make no sense to obstore.
    """
    patience = timedelta(seconds=float(os.environ.get("RDCACHE_PATIENCE", PATIENCE_SECONDS)))
    plain = any(os.environ.get(name, "").startswith("http://") for name in ENDPOINTS)
    try:
        return from_url(
            location.url,
            # A limit for a whole request would be one for the slowest line and largest object.
            client_options={
                "timeout": timedelta(days=1),
                "read_timeout": patience / 2,
                "connect_timeout": patience / 6,
                **({"allow_http": True} if plain else {}),
            },
            retry_config={"max_retries": 8, "retry_timeout": patience},
        )
    except (BaseError, ValueError) as error:
        raise UsageError(
            "there is no bucket at this address.", address=location, why=_reason(error)
        ) from error


def _reason(error: Exception) -> str:
    """The first line of what obstore says; the rest is its internal state."""
    return str(error).strip().splitlines()[0].strip() if str(error).strip() else repr(error)


def _copy(data: np.ndarray, start: int, piece: memoryview) -> None:
    data[start : start + len(piece)] = np.frombuffer(piece, np.uint8)


def _write_at(descriptor: int, start: int, piece: memoryview) -> None:
    while piece:
        written = os.pwrite(descriptor, piece, start)
        piece, start = piece[written:], start + written
