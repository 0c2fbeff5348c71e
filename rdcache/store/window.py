"""One indexing in place of a slice for each sample: a window onto the memory that files are mapped
to.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np

MOST_BYTES = 2**62  # that an array may seem to have


class Stretch(NamedTuple):
    """A part of the memory, as rows that overlap.

    Attributes:
        first: the address that it begins at.
        rows: uint8 (addresses, bytes of a sample); row i are the bytes from `first + i` on.
    """

    first: int
    rows: np.ndarray


class Window:
    """Samples in mapped files, each found by its number. The files stay mapped for as long as there
    is the window, and threads may look through it while files are added by one.

    Args:
        samples: how many there are.
        nbytes: bytes of each.
    """

    def __init__(self, samples: int, nbytes: int) -> None:
        self._nbytes = nbytes
        self._files: list[np.ndarray] = []
        self._reach = (2**63, 0)  # from the first address to the last
        self._stretch: Stretch | None = None
        self._addresses = np.zeros(samples, np.int64)  # of each sample; 0 where it is not

    def add(self, file: np.ndarray, numbers: slice, starts: np.ndarray) -> None:
        """Let samples of a file be seen.

        Args:
            file: mapped, uint8 (bytes,).
            numbers: of the samples.
            starts: where each begins in the file, int64; negative where it is not in there.
        """
        self._files.append(file)
        begin = file.ctypes.data
        reach = (min(self._reach[0], begin), max(self._reach[1], begin + file.size))
        if reach != self._reach:
            self._reach, self._stretch = reach, _stretch(*reach, self._nbytes)
        # Last: whoever finds an address has a stretch that it lies in.
        self._addresses[numbers] = np.where(starts < 0, 0, begin + starts)

    def take(self, numbers: np.ndarray) -> np.ndarray | None:
        """Copies of samples, uint8 (B, nbytes); None if not all of them are seen.

        Args:
            numbers: int64 (B,).
        """
        addresses = self._addresses.take(numbers)
        stretch = self._stretch
        if stretch is None or np.count_nonzero(addresses) < len(addresses):
            return None
        copies: np.ndarray = stretch.rows[addresses - stretch.first]
        return copies


def _stretch(first: int, stop: int, nbytes: int) -> Stretch | None:
    """The memory between two addresses; None where it has no room for a sample, or seems to have
    more bytes than NumPy counts. Only what is mapped of it may be looked at.
    """
    count = stop - first - nbytes + 1
    if not 0 < count <= MOST_BYTES // nbytes:
        return None
    memory = memoryview((ctypes.c_ubyte * (stop - first)).from_address(first))
    rows = np.ndarray((count, nbytes), np.uint8, memory, 0, (1, 1))
    rows.flags.writeable = False
    return Stretch(first, rows)
