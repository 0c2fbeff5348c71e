"""Objects of a store, each written whole or not at all: files of a folder, or objects of a bucket.

Whoever reads or writes a store goes through `Objects`, so that all else is the same for both;
`remote.py` has the buckets.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from rdcache.errors import StoreReadError, StoreWriteError, UsageError
from rdcache.files import sync_folder
from rdcache.store.durability import make_folder, sync_folders, sync_tree, write_durably
from rdcache.store.links import inside
from rdcache.store.locations import Location, RemotePath
from rdcache.store.pages import map_file

TEMPORARY = ".partial"
ADVICE = {
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the disk quota is used up: free some space and run the same command again",
    errno.EFBIG: "the file size limit is reached: raise it and run the same command again",
    errno.EROFS: "the file system is read-only: choose another --root",
    errno.EACCES: "you may not write there: choose another --root, or ask its owner",
    errno.EPERM: "you may not write there: choose another --root, or ask its owner",
    errno.ENOTDIR: "a part of the path is a file: choose another --root",
    errno.EEXIST: "a part of the path is a file: choose another --root",
}
READING_ADVICE = {
    errno.EACCES: "you may not read it: ask its owner",
    errno.EPERM: "you may not read it: ask its owner",
    errno.EMFILE: "this process has too many files open: raise `ulimit -n`",
    errno.ENFILE: "this machine has too many files open: end other programs",
    errno.ENOMEM: "free some memory, or raise `sysctl vm.max_map_count`",
}


class ReadableObjects(Protocol):
    """Objects below a location, named by paths relative to it, with `/` between parts."""

    @property
    def location(self) -> Location:
        """The folder or prefix that the names are relative to; named in errors."""

    @property
    def lasting(self) -> bool:
        """Whether objects may stay mapped for good: none ever has to make room."""

    @property
    def downloads(self) -> int:
        """How many objects were brought here to be mapped; for each, others may be `gone`."""

    def read(self, name: str, most: int | None = None) -> bytes | None:
        """The bytes of a small object, None where there is none, or one of more than `most` bytes
        in a bucket.
        """

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """The bytes of many small objects, in the order asked for."""

    def get(self, name: str, nbytes: int) -> bytes | None:
        """The bytes of an object of a known length; None where it is missing or of another length,
        so that a damaged store never makes us read more than it should hold.
        """

    def mapped(self, name: str, most: int | None = None) -> np.ndarray | None:
        """A large object as uint8 (bytes,), read only; None where there is none or it is empty, or
        where it would take more than `most` bytes of memory.

        Raises:
            StoreReadError: it is there, but cannot be read.
        """

    def use(self, names: Iterable[str]) -> None:
        """Note that objects that were mapped have been read since."""

    def gone(self, names: Iterable[str]) -> set[str]:
        """Which of the objects that were mapped should be let go: those that had to make room.

        Args:
            names: in the order they were mapped.
        """

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""

    def sizes(self, prefix: str) -> dict[str, int]:
        """Names of all finished objects below a folder, with their lengths in bytes."""


class Objects(ReadableObjects, Protocol):
    """Objects that can be written, too. Errors of writing are `StoreWriteError`."""

    def put(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write an object whole, in place of any other, durably."""

    def create(self, name: str, data: bytes) -> bool:
        """Write a new object whole, unless there is one of this name already: only one of several
        that try succeeds.
        """

    def size(self, name: str) -> int | None:
        """The length of an object in bytes, None where there is none."""

    def tail(self, name: str, size: int, nbytes: int) -> bytes | None:
        """The last bytes of an object of `size` bytes; None where there are not so many."""

    def modified(self, name: str) -> float | None:
        """When an object was last written, in seconds since 1970; None where there is none."""

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below a folder, sorted; without the prefix."""

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, durably; those that are not there are no error."""

    def sync(self) -> None:
        """Make durable that everything lies where it does, whoever has written it."""

    def remove_all(self) -> None:
        """Delete everything below the location, and the location."""

    def clean(self, alive: Callable[[str], bool] = lambda token: False) -> None:
        """Delete what writers that died have left half-written.

        Args:
            alive: whether the worker of this token may still be writing.
        """


def objects_at(location: Location, token: str | None = None) -> Objects:
    """The objects below a location.

    Args:
        token: of the worker that writes.

    Raises:
        UsageError: buckets need a package that is not installed.
    """
    if isinstance(location, RemotePath):
        try:
            from rdcache.store.remote import RemoteObjects
        except ImportError:
            raise UsageError(
                "stores in buckets need the package obstore.", next="pip install 'rdcache[remote]'"
            ) from None
        return RemoteObjects(location)
    return LocalObjects(location, token)


class LocalObjects:
    """A folder of objects.

    Args:
        token: of the worker that writes; part of the names of its temporary files.
    """

    lasting = True
    downloads = 0

    def __init__(self, folder: Path, token: str | None = None) -> None:
        self.location = folder
        self.token = token or secrets.token_hex(8)

    def put(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write an object whole: temporary file, fsync, rename, fsync of the folder, and of those
        above it that are new.

        Raises:
            StoreWriteError: it could not be written; no temporary file is left.
        """
        path = inside(self.location, name)
        temporary = self._temporary(path)
        try:
            write_durably(path, temporary, pieces)
        except OSError as error:
            raise write_error(path, error) from error

    def create(self, name: str, data: bytes) -> bool:
        """Write a new object whole, unless there is one of this name already: only one of several
        that try succeeds.

        Raises:
            StoreWriteError: it could not be written.
        """
        path = inside(self.location, name)
        temporary = self._temporary(path)
        try:
            if changed := make_folder(path.parent):
                sync_folders(changed)
            try:
                temporary.write_bytes(data)
                os.link(temporary, path)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(path, error) from error
        return True

    def read(self, name: str, most: int | None = None) -> bytes | None:
        """The bytes of a small object, None where there is none."""
        try:
            return inside(self.location, name).read_bytes()
        except OSError:
            return None

    def read_all(self, names: Sequence[str]) -> list[bytes | None]:
        """The bytes of many small objects, in the order asked for."""
        return [self.read(name) for name in names]

    def mapped(self, name: str, most: int | None = None) -> np.ndarray | None:
        """A large object as uint8 (bytes,), read only; None where there is none or it is empty.

        Raises:
            StoreReadError: it is there, but cannot be read.
        """
        return mapped_file(inside(self.location, name))

    def use(self, names: Iterable[str]) -> None:
        """Nothing to do."""

    def gone(self, names: Iterable[str]) -> set[str]:
        """None: a file that is mapped stays readable."""
        return set()

    def get(self, name: str, nbytes: int) -> bytes | None:
        """The bytes of an object of a known length; None where it is missing or of another length,
        so that a damaged store never makes us read more than it should hold.
        """
        path = inside(self.location, name)
        try:
            return path.read_bytes() if path.stat().st_size == nbytes else None
        except OSError:
            return None

    def size(self, name: str) -> int | None:
        """The length of an object in bytes, None where there is none."""
        try:
            return inside(self.location, name).stat().st_size
        except OSError:
            return None

    def tail(self, name: str, size: int, nbytes: int) -> bytes | None:
        """The last bytes of an object of `size` bytes; None where there are not so many."""
        try:
            with (self.location / name).open("rb") as file:
                file.seek(size - nbytes)
                return file.read(nbytes)
        except (OSError, ValueError):
            return None

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return inside(self.location, name).is_file()

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, durably; those that are not there are no error.

        Raises:
            StoreWriteError: the folder cannot be changed.
        """
        paths = [inside(self.location, name) for name in names]
        try:
            for path in paths:
                path.unlink(missing_ok=True)
            for folder in {path.parent for path in paths}:
                sync_folder(folder)
        except OSError as error:
            raise write_error(self.location, error) from error

    def sizes(self, prefix: str) -> dict[str, int]:
        """Names of all finished objects below a folder, with their lengths in bytes."""
        found = {}
        for folder, _, files in os.walk(self.location / prefix):
            for file in files:
                # What others delete meanwhile is not there; nor is what a link in circles leads to.
                with contextlib.suppress(OSError):
                    if not file.endswith(TEMPORARY):
                        path = Path(folder, file)
                        found[path.relative_to(self.location).as_posix()] = path.stat().st_size
        return found

    def modified(self, name: str) -> float | None:
        """When an object was last written, in seconds since 1970; None where there is none."""
        try:
            return (self.location / name).stat().st_mtime
        except OSError:
            return None

    def folders(self, prefix: str) -> list[str]:
        """Names of the folders right below a folder, sorted; without the prefix."""
        try:
            return sorted(path.name for path in (self.location / prefix).iterdir() if path.is_dir())
        except OSError:
            return []

    def sync(self) -> None:
        """Make durable that everything lies where it does, whoever has written it.

        Raises:
            StoreWriteError: the disk failed.
        """
        try:
            sync_tree(self.location)
        except OSError as error:
            raise write_error(self.location, error) from error

    def remove_all(self) -> None:
        """Delete everything below the location, and the location.

        Raises:
            StoreWriteError: it may not be deleted.
        """
        try:
            shutil.rmtree(self.location)
        except FileNotFoundError:
            return
        except OSError as error:
            raise write_error(self.location, error) from error

    def clean(self, alive: Callable[[str], bool] = lambda token: False) -> None:
        """Delete the temporary files of writers that died.

        Args:
            alive: whether the worker of this token may still be writing.
        """
        strays = [
            path.relative_to(self.location).as_posix()
            for path in self.location.rglob(f".*{TEMPORARY}")
            if not alive(path.name.split(".")[-3])
        ]
        self.delete(strays)

    def _temporary(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{self.token}.{secrets.token_hex(4)}{TEMPORARY}")


def mapped_file(path: Path) -> np.ndarray | None:
    """A file as uint8 (bytes,), read only; None where there is none, or it is empty or a folder.

    Raises:
        StoreReadError: it is there, but cannot be read.
    """
    try:
        return map_file(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
        return None
    except OSError as error:
        advice = READING_ADVICE.get(error.errno or 0, "run the same command again")
        raise StoreReadError(
            "a file of this store cannot be read.",
            file=path,
            why=error.strerror or error,
            next=advice,
        ) from error


def write_error(path: Location, error: OSError) -> StoreWriteError:
    """Say in one sentence what keeps us from writing here, and what to do."""
    advice = ADVICE.get(error.errno or 0, f"{error.strerror or error}: run the same command again")
    return StoreWriteError("the store cannot be written.", file=path, next=advice)
