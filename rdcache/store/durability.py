"""Files of a store, written whole and durably: few calls of the system, few waits for the disk.

What has been written is there after a power cut: the file, its name, and the folders that are new.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rdcache.files import sync_folder

PIECES_A_CALL = 1024  # IOV_MAX of Linux and macOS
BYTES_A_CALL = 2 * 2**20  # a huge page
SYNC_FILE_RANGE_WRITE = 2  # of Linux: begin, and do not wait for the end
# Errors that say that a file, or a sandbox, has no such call, and nothing of the disk.
NOT_HERE = {errno.ENOSYS, errno.EINVAL, errno.ESPIPE, errno.EOPNOTSUPP, errno.EPERM, errno.EINTR}
SYNCS_AT_ONCE = 16


def write_durably(path: Path, temporary: Path, pieces: Sequence[bytes | memoryview]) -> None:
    """Write a file whole: temporary file, fsync, rename, fsync of the folder, and of those above it
    that are new.

    Args:
        temporary: where it is written first, in the same folder; not left behind by a failure.
        pieces: its bytes, one after the other.

    Raises:
        OSError: it could not be written.
    """
    changed = [path.parent, *make_folder(path.parent)]
    try:
        with temporary.open("wb", buffering=0) as file:
            _write_all(file.fileno(), pieces)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        # Who tries again finds the new folders there, and does not sync those above them.
        with contextlib.suppress(OSError):
            sync_folders(changed)
        raise
    sync_folders(changed)


def make_folder(folder: Path) -> list[Path]:
    """Create a folder and its parents; those that have got a new folder are still to be synced."""
    changed, missing = [], folder
    while not missing.is_dir():
        missing = missing.parent
        changed.append(missing)
    folder.mkdir(parents=True, exist_ok=True)
    return changed


def sync_folders(folders: Sequence[Path]) -> None:
    """Make changes of folders durable, all at once: together they cost the disk one flush, where
    one after the other each costs its own.
    """
    if len(folders) == 1:
        sync_folder(folders[0])
        return
    with ThreadPoolExecutor(min(len(folders), SYNCS_AT_ONCE), thread_name_prefix="sync") as pool:
        list(pool.map(sync_folder, folders))


def sync_tree(folder: Path) -> None:
    """Make the names of all files and folders below a folder durable, and its own.

    Raises:
        OSError: the disk failed.
    """
    sync_folders([*(Path(path) for path, _, _ in os.walk(folder)), folder.parent])


def _write_all(descriptor: int, pieces: Sequence[bytes | memoryview]) -> None:
    """Write pieces, many with each call: a shard has two for every sample, one of four bytes.

    The disk begins with each call's bytes while the next ones are copied; left to itself it would
    begin with the fsync. Space is not reserved first: where a file system cannot do that, it would
    be filled with zeros.
    """
    left = sum(memoryview(piece).nbytes for piece in pieces)
    start = 0
    for call in _calls(pieces):
        nbytes = sum(map(len, call))
        _write_call(descriptor, call)
        left -= nbytes
        if left:  # else the fsync comes next
            _begin_writing_back(descriptor, start, nbytes)
        start += nbytes


def _calls(pieces: Sequence[bytes | memoryview]) -> Iterator[list[memoryview]]:
    """Pieces in lists for one call each, which ends at the latest where a huge page of the file
    does, within a piece if need be. Linux keeps in one page of memory what one call writes of it,
    if it can, and a file in huge pages is read faster.
    """
    call: list[memoryview] = []
    room = BYTES_A_CALL
    for piece in pieces:
        rest = memoryview(piece).cast("B")
        while len(rest) >= room:
            yield [*call, rest[:room]]
            rest, call, room = rest[room:], [], BYTES_A_CALL
        if len(rest):
            call.append(rest)
            room -= len(rest)
        if len(call) == PIECES_A_CALL:
            yield call
            call = []
    if call:
        yield call


def _write_call(descriptor: int, call: list[memoryview]) -> None:
    """Write all pieces of a list, with more calls where the system takes fewer bytes."""
    while call:
        written = os.writev(descriptor, call)
        while call and written >= len(call[0]):
            written -= len(call.pop(0))
        if written:  # the call ended within a piece
            call[0] = call[0][written:]


def _begin_writing_back(descriptor: int, start: int, nbytes: int) -> None:
    """Have the kernel begin to write a part of a file to the disk, where it can.

    Raises:
        OSError: the disk failed, which a later fsync may not tell again.
    """
    if _sync_file_range is None:
        return
    if _sync_file_range(descriptor, start, nbytes, SYNC_FILE_RANGE_WRITE):
        number = ctypes.get_errno()
        if number not in NOT_HERE:
            raise OSError(number, os.strerror(number))


def _system_call() -> Callable[[int, int, int, int], int] | None:
    """Linux's `sync_file_range`; None on systems without it."""
    try:
        call = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError, TypeError):  # no such library, call, or way to look for it
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    return call


_sync_file_range = _system_call()
