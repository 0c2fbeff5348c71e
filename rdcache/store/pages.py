"""Files as memory: mapped without an open descriptor, and how the page cache stands to them.

Copying from mapped pages that are not in memory waits for the disk page by page, at a twentieth of
its speed. Who asks for them ahead, for all samples of a batch at once, gets as much as from eight
threads with `pread`, and needs no descriptor, so that a file that was deleted stays readable.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
import sys
import weakref
from collections.abc import Mapping, Set
from pathlib import Path

import numpy as np

PAGE = mmap.PAGESIZE
ASKED_AT_ONCE = 128 * 2**10  # bytes; of more the kernel may ignore the rest
WINDOWS, WINDOW_PAGES = 32, 4  # where a shard is looked at, and how many pages each time
FORGIVEN = 1  # windows that may be missing: to ask for all of a shard costs more than a few pages
LOOKED_AT_WHOLE = 512  # pages; of so few one look at all is quicker than many at some
FAILED = ctypes.c_void_p(-1).value
_untold: set[int] = set()  # addresses of maps of which the kernel does not tell what is in memory

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def map_file(path: Path) -> np.ndarray:
    """A file as uint8 (bytes,), read only. Python's own maps keep a descriptor each, of which a
    process may have few; a large store has thousands of shards.

    Raises:
        OSError: it cannot be opened or mapped; IsADirectoryError if it is a folder.
        ValueError: it is empty.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        facts = os.fstat(descriptor)
        size = facts.st_size
        if stat.S_ISDIR(facts.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not size:
            raise ValueError("an empty file cannot be mapped")
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    finally:
        os.close(descriptor)
    if address == FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))
    # The kernel tells the owner and who may write; to all others every page is in memory.
    if facts.st_uid != os.geteuid() and not os.access(path, os.W_OK):
        _untold.add(address)
    content = (ctypes.c_ubyte * size).from_address(address)
    # At the end of the process threads may still be reading; the kernel unmaps then.
    weakref.finalize(content, _unmap, address, size).atexit = False
    data = np.frombuffer(memoryview(content), np.uint8)
    data.flags.writeable = False
    return data


def _unmap(address: int, size: int) -> None:
    _untold.discard(address)  # first: the next map may get this address
    _libc.munmap(address, size)


def ask_for(data: np.ndarray, start: int, nbytes: int) -> None:
    """Have the kernel read a part of a mapped file, without waiting for it."""
    if sys.platform != "linux":
        return
    stop = data.ctypes.data + start + nbytes
    address = (data.ctypes.data + start) // PAGE * PAGE
    while address < stop:
        _libc.madvise(address, min(ASKED_AT_ONCE, stop - address), mmap.MADV_WILLNEED)
        address += ASKED_AT_ONCE


def is_resident(data: np.ndarray) -> bool:
    """Whether a mapped file is in memory, as far as a look at some of its pages tells; a no where
    the kernel does not tell.
    """
    if sys.platform != "linux":
        return True
    if data.ctypes.data in _untold:
        return False
    first = data.ctypes.data // PAGE * PAGE
    pages = -(-(data.ctypes.data + data.size - first) // PAGE)
    if pages <= LOOKED_AT_WHOLE:
        told = np.empty(pages, np.uint8)
        if _libc.mincore(first, pages * PAGE, told.ctypes.data_as(ctypes.c_char_p)):
            return True  # what the kernel does not know is no such file
        missing = pages - int(np.count_nonzero(told & 1))
        return missing <= pages * FORGIVEN // WINDOWS
    count = min(WINDOW_PAGES, pages)
    seen, missing = ctypes.create_string_buffer(count), 0
    for number in range(WINDOWS):
        page = (pages - count) * number // (WINDOWS - 1)
        if _libc.mincore(first + page * PAGE, count * PAGE, seen):
            return True
        missing += any(not byte & 1 for byte in seen.raw)
        if missing > FORGIVEN:
            return False
    return True


class Residency:
    """Which shards of a tap are in memory. Each is looked at when it is first read, and all again
    when as many samples have been read as they hold.

    Args:
        shard_samples: samples that a shard holds.
    """

    def __init__(self, shard_samples: int) -> None:
        self.shard_samples = shard_samples
        self._seen: set[int] = set()
        self._absent: set[int] = set()
        self._read = 0  # samples since the last look at all

    def all_there(self, shards: int) -> bool:
        """Whether so many shards have been looked at, all are in memory, and it is not time to look
        again.
        """
        return not (self._absent or len(self._seen) < shards or self._is_time())

    def count(self, samples: int) -> None:
        """Note that samples have been read without asking which shards are not in memory."""
        self._read += samples

    def absent(self, keys: Set[int], sources: Mapping[int, np.ndarray], samples: int) -> Set[int]:
        """Which shards are not in memory.

        Args:
            keys: those that are read now.
            sources: shard → its mapped file; of these, and of all others that stay mapped.
            samples: how many are read from them.
        """
        if self._is_time():
            known = dict(sources)  # other threads may be mapping more
            absent = {key for key, source in known.items() if not is_resident(source)}
            self._seen, self._absent, self._read = set(known), absent, 0
        elif new := keys - self._seen:
            self._absent |= {key for key in new if not is_resident(sources[key])}
            self._seen |= new
        self._read += samples
        return keys & self._absent

    def _is_time(self) -> bool:
        return self._read > self.shard_samples * len(self._seen)
