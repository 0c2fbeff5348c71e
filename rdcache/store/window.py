"""One indexing in place of a slice for each sample: a window onto the memory that files are mapped
to.
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import numpy as np

from rdcache.store.shard import CHECKSUM_BYTES

MOST_BYTES = 2**62  # that an array may seem to have


class Stretch(NamedTuple):
    """A part of the memory, as rows that overlap.

    Attributes:
        first: the address that it begins at.
        rows: uint8 (addresses, bytes of a sample); row i are the bytes from `first + i` on.
        behind: uint8 (addresses, 4), the bytes that follow each row.
    """

    first: int
    rows: np.ndarray
    behind: np.ndarray


class Window:
    """Samples in mapped files, each found by its view and number. The files stay mapped for as long
    as there is the window, and threads may look through it while files are added by one.

    Args:
        views, samples: how many there are.
        nbytes: bytes of each sample.
    """

    def __init__(self, views: int, samples: int, nbytes: int) -> None:
        self._nbytes = nbytes
        self._files: list[np.ndarray] = []
        self._reach = (2**63, 0)  # from the first address to the last
        self._stretch: Stretch | None = None
        # The address of each sample; 0 where it is not seen, negative where it is hidden. Twice as
        # long as there are numbers, so that all which are out of range, and negative ones, which
        # count from the end, find a 0 or nothing: no number has to be looked at. Pages of zeros
        # that nobody writes to take no memory.
        self._addresses = np.zeros((2 * views, 2 * samples), np.int64)

    def add(self, file: np.ndarray, view: int, samples: slice, starts: np.ndarray) -> None:
        """Note where samples of a file lie; they are hidden until they are shown.

        Args:
            file: mapped, uint8 (bytes,).
            view, samples: which.
            starts: where each begins in the file, int64; negative where it is not in there.
        """
        self._files.append(file)
        begin = file.ctypes.data
        reach = (min(self._reach[0], begin), max(self._reach[1], begin + file.size))
        if reach != self._reach:
            self._reach, self._stretch = reach, _stretch(*reach, self._nbytes)
        # Last: whoever finds an address has a stretch that it lies in.
        self._addresses[view, samples] = np.where(starts < 0, 0, -(begin + starts))

    def show(self, samples: np.ndarray | slice, views: np.ndarray | int) -> None:
        """Let samples be seen.

        Args:
            samples, views: within range.
        """
        self._addresses[views, samples] = np.abs(self._addresses[views, samples])

    def find(self, samples: np.ndarray, views: np.ndarray | int) -> np.ndarray:
        """Where samples lie, int64 (B,), for `copies` and `payloads`.

        Args:
            samples: int64 (B,).
            views: the same, or one for all.

        Raises:
            IndexError: some number is out of range. Not all are found out here.
        """
        if isinstance(views, int):  # so often that it is to be quick
            return self._addresses[views].take(samples)
        found: np.ndarray = self._addresses[views, samples]
        return found

    def copies(self, addresses: np.ndarray) -> np.ndarray:
        """Samples, uint8 (B, nbytes).

        Raises:
            IndexError: not all of them are seen.
        """
        stretch = self._looked_through()
        copies: np.ndarray = stretch.rows[addresses - stretch.first]
        return copies

    def payloads(self, addresses: np.ndarray) -> list[np.ndarray]:
        """Samples where they lie, uint8 (nbytes,) each.

        Raises:
            IndexError: not all of them are seen.
        """
        stretch = self._looked_through()
        return [stretch.rows[place] for place in (addresses - stretch.first).tolist()]

    def checksums(self, addresses: np.ndarray) -> np.ndarray:
        """What is stated of samples behind them, uint32 (B,). Errors are those of `copies`."""
        stretch = self._looked_through()
        checksums: np.ndarray = stretch.behind[addresses - stretch.first].view("<u4")[:, 0]
        return checksums

    def _looked_through(self) -> Stretch:
        if self._stretch is None:
            raise IndexError("nothing is seen")
        return self._stretch


def _stretch(first: int, stop: int, nbytes: int) -> Stretch | None:
    """The memory between two addresses; None where it has no room for a sample, or seems to have
    more bytes than NumPy counts. Only what is mapped of it may be looked at.
    """
    count = stop - first - nbytes - CHECKSUM_BYTES + 1
    # Not as many rows as would make an address of 0, or a negative one, a row counted from the end.
    if not 0 < count <= min(MOST_BYTES // nbytes, first - 1):
        return None
    memory = memoryview((ctypes.c_ubyte * (stop - first)).from_address(first))
    rows, behind = (
        np.ndarray((count, width), np.uint8, memory, start, (1, 1))
        for start, width in ((0, nbytes), (nbytes, CHECKSUM_BYTES))
    )
    rows.flags.writeable = behind.flags.writeable = False
    return Stretch(first, rows, behind)
