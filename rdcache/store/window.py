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
        checksums: uint8 (addresses, 4), the bytes that follow each row.
    """

    first: int
    rows: np.ndarray
    checksums: np.ndarray


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
        # The address of each sample; 0 where it is not seen, negative where it is not verified.
        # Pages of zeros that nobody writes to take no memory.
        self._addresses = np.zeros((views, samples), np.int64)

    def add(
        self, file: np.ndarray, view: int, samples: slice, starts: np.ndarray, *, verified: bool
    ) -> None:
        """Let samples of a file be seen.

        Args:
            file: mapped, uint8 (bytes,).
            view, samples: which.
            starts: where each begins in the file, int64; negative where it is not in there.
            verified: whether they need not be compared with their checksums any more.
        """
        self._files.append(file)
        begin = file.ctypes.data
        reach = (min(self._reach[0], begin), max(self._reach[1], begin + file.size))
        if reach != self._reach:
            self._reach, self._stretch = reach, _stretch(*reach, self._nbytes)
        # Last: whoever finds an address has a stretch that it lies in.
        addresses = np.where(starts < 0, 0, begin + starts)
        self._addresses[view, samples] = addresses if verified else -addresses

    def verify(self, numbers: np.ndarray) -> None:
        """Note that samples have been verified.

        Args:
            numbers: as in `Picks`, within range.
        """
        self._addresses.put(numbers, np.abs(self._addresses.take(numbers)))

    def numbers(self, samples: np.ndarray, views: np.ndarray | int) -> np.ndarray:
        """Places in a table of (views, samples), as in `Picks`.

        Args:
            samples: int64 (B,), any.
            views: the same, or one for all.

        Raises:
            IndexError: some are out of range, or there are none.
        """
        try:
            numbers = np.ravel_multi_index((views, samples), self._addresses.shape)
        except (TypeError, OverflowError, ValueError):  # also of what fits no int64
            raise IndexError from None
        if not len(numbers):  # of none the view would not have been looked at
            raise IndexError
        return numbers

    def find(self, numbers: np.ndarray) -> np.ndarray:
        """Where samples lie, for `copies` and `payloads`: int64 (B,), negative where they are not
        verified yet, 0 where they are not seen.
        """
        return self._addresses.take(numbers)

    def copies(self, addresses: np.ndarray) -> np.ndarray:
        """Samples, uint8 (B, nbytes).

        Raises:
            IndexError: not all of them are seen and verified.
        """
        stretch = self._looked_through()
        copies: np.ndarray = stretch.rows[addresses - stretch.first]
        return copies

    def payloads(self, addresses: np.ndarray) -> list[np.ndarray]:
        """Samples where they lie, uint8 (nbytes,) each. Errors are those of `copies`."""
        stretch = self._looked_through()
        return [stretch.rows[place] for place in (addresses - stretch.first).tolist()]

    def checksums(self, addresses: np.ndarray) -> np.ndarray:
        """What is stated of samples behind them, uint32 (B,). Errors are those of `copies`."""
        stretch = self._looked_through()
        checksums: np.ndarray = stretch.checksums[addresses - stretch.first].view("<u4")[:, 0]
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
    rows, checksums = (
        np.ndarray((count, width), np.uint8, memory, start, (1, 1))
        for start, width in ((0, nbytes), (nbytes, CHECKSUM_BYTES))
    )
    rows.flags.writeable = checksums.flags.writeable = False
    return Stretch(first, rows, checksums)
