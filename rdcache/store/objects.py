"""Objects of a store, each written whole or not at all. Today they are files of a local folder."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

from rdcache.errors import StoreWriteError
from rdcache.files import sync_folder
from rdcache.store.links import inside

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


class LocalObjects:
    """A folder of objects, named by paths relative to it, with `/` between parts.

    Args:
        token: of the worker that writes; part of the names of its temporary files.
    """

    def __init__(self, folder: Path, token: str | None = None) -> None:
        self.folder = folder
        self.token = token or secrets.token_hex(8)

    def put(self, name: str, *pieces: bytes | memoryview) -> None:
        """Write an object whole: temporary file, fsync, rename, fsync of the folder.

        Raises:
            StoreWriteError: it could not be written; no temporary file is left.
        """
        path = inside(self.folder, name)
        temporary = self._temporary(path)
        try:
            _make_folder(path.parent)
            try:
                with temporary.open("wb") as file:
                    file.writelines(pieces)
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(path)
            except BaseException:
                with contextlib.suppress(OSError):
                    temporary.unlink()
                raise
            sync_folder(path.parent)
        except OSError as error:
            raise write_error(path, error) from error

    def create(self, name: str, data: bytes) -> bool:
        """Write a new object whole, unless there is one of this name already: only one of several
        that try succeeds.

        Raises:
            StoreWriteError: it could not be written.
        """
        path = inside(self.folder, name)
        temporary = self._temporary(path)
        try:
            _make_folder(path.parent)
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

    def read(self, name: str) -> bytes | None:
        """The bytes of a small object, None where there is none."""
        try:
            return inside(self.folder, name).read_bytes()
        except OSError:
            return None

    def get(self, name: str, nbytes: int) -> bytes | None:
        """The bytes of an object of a known length; None where it is missing or of another length,
        so that a damaged store never makes us read more than it should hold.
        """
        path = inside(self.folder, name)
        try:
            return path.read_bytes() if path.stat().st_size == nbytes else None
        except OSError:
            return None

    def size(self, name: str) -> int | None:
        """The length of an object in bytes, None where there is none."""
        try:
            return inside(self.folder, name).stat().st_size
        except OSError:
            return None

    def exists(self, name: str) -> bool:
        """Whether there is such an object."""
        return inside(self.folder, name).is_file()

    def delete(self, names: Iterable[str]) -> None:
        """Delete objects, durably; those that are not there are no error.

        Raises:
            StoreWriteError: the folder cannot be changed.
        """
        folders = set()
        for name in names:
            path = inside(self.folder, name)
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise write_error(path, error) from error
            folders.add(path.parent)
        for folder in folders:
            sync_folder(folder)

    def names(self, prefix: str) -> set[str]:
        """Names of all finished objects below a folder."""
        found = (path for path in (self.folder / prefix).rglob("*") if path.is_file())
        return {
            path.relative_to(self.folder).as_posix()
            for path in found
            if not path.name.endswith(TEMPORARY)
        }

    def clean(self, alive: Callable[[str], bool] = lambda token: False) -> None:
        """Delete the temporary files of writers that died.

        Args:
            alive: whether the worker of this token may still be writing.
        """
        strays = [
            path.relative_to(self.folder).as_posix()
            for path in self.folder.rglob(f".*{TEMPORARY}")
            if not alive(path.name.split(".")[-3])
        ]
        self.delete(strays)

    def _temporary(self, path: Path) -> Path:
        return path.with_name(f".{path.name}.{self.token}.{secrets.token_hex(4)}{TEMPORARY}")


def write_error(path: Path, error: OSError) -> StoreWriteError:
    """Say in one sentence what keeps us from writing here, and what to do."""
    advice = ADVICE.get(error.errno or 0, f"{error.strerror or error}: run the same command again")
    return StoreWriteError("the store cannot be written.", file=path, next=advice)


def _make_folder(folder: Path) -> None:
    """Create a folder and its parents, each made durable in the one above it."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
