"""Small files written whole: after any interruption the old or the new one is there; and where
files go that can be made again.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import platformdirs

from rdcache.errors import FileWriteError


def user_cache() -> Path:
    """Where things are kept that can be made again: RDCACHE_CACHE, else the user's cache folder."""
    named = os.environ.get("RDCACHE_CACHE")
    return Path(named).expanduser() if named else Path(platformdirs.user_cache_dir("rdcache"))


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file so that it is never there in part, and survives a power cut once written.

    Args:
        write: writes all of the file to the path that it is given.

    Raises:
        FileWriteError: it cannot be written: no such folder, no right to, no space.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(partial)
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
            partial.replace(path)
            sync_folder(path.parent)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise FileWriteError(
            "this file cannot be written.",
            file=path,
            why=error.strerror or error,
            next="free some space or choose another place, and run the same command again",
        ) from error


def sync_folder(folder: Path) -> None:
    """Make changes of a folder durable; file systems without this notion are left alone.

    Raises:
        OSError: the disk failed.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except (FileNotFoundError, PermissionError):
        return  # deleted meanwhile by another; or a folder that may be written but not read
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    write_whole(path, lambda partial: _all_of(partial, data))


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    write_bytes(path, text.encode())


def _all_of(path: Path, data: bytes) -> None:
    path.write_bytes(data)
