"""Gathering samples out of compressed shards: the map of a tap, with samples decompressed out of it
by a few threads.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, wait

import numpy as np

from rdcache.store import shard
from rdcache.store.compression import decompress
from rdcache.store.gather import MappedTap
from rdcache.store.picks import Places
from rdcache.store.spec import ShardRef
from rdcache.store.threads import THREADS, computing_threads

WORTH_THREADS = 2**18  # bytes of a batch; less is done before a thread has woken
PARTS = 2 * THREADS  # that a batch is cut into: samples of other lengths take other times


class CompressedTap(MappedTap):
    """All shards of one compressed tap. Reads what `MappedTap` reads, with the same errors."""

    def _take(self, rows: np.ndarray, places: Places, verify: bool) -> None:
        unchecked = self._unchecked(places.numbers, verify)

        def fill(part: range) -> None:
            for place in part:
                try:
                    check = unchecked is not None and unchecked[place]
                    payload = self._payload(places, place, check)
                    decompress(self.tap, payload, rows[places.rows[place]])
                except ValueError:
                    raise self._corrupt_at(places.numbers[place]) from None

        count = len(places.rows)
        if count < 2 or count * self.tap.nbytes < WORTH_THREADS:
            fill(range(count))
        else:
            self._in_threads(fill, count)

    def _in_threads(self, fill: Callable[[range], None], count: int) -> None:
        size = -(-count // PARTS)
        parts = [range(start, min(start + size, count)) for start in range(0, count, size)]
        running: list[Future[None]] = []
        try:
            for part in parts:
                running.append(computing_threads().submit(fill, part))
        finally:
            wait(running)  # also after an error: nobody may write to a batch that was given up
        for part_done in running:
            part_done.result()

    def _payload(self, places: Places, place: int, check: bool) -> np.ndarray:
        """One compressed sample."""
        source, start, lengths = places.sources[place], places.starts[place], places.lengths
        assert isinstance(lengths, np.ndarray)
        end = start + int(lengths[place])
        if not check:
            return source[start:end]
        payload = source[start:end].copy()  # the bytes that are checked are decompressed
        self._require_match(payload, places, place, end)
        return payload

    def _forget(self) -> None:
        super()._forget()
        self._lengths = np.zeros((self.layout.views, self.layout.samples), np.int64)

    def _note(self, ref: ShardRef, table: np.ndarray) -> None:
        super()._note(ref, table)
        lengths = np.maximum(table[:, 1] - shard.CHECKSUM_BYTES, 0)
        self._lengths[ref.view, ref.start : ref.stop] = lengths[: ref.stop - ref.start]

    def _lengths_of(self, numbers: np.ndarray) -> np.ndarray:
        return self._lengths.take(numbers)

    def _fit(self, offsets: np.ndarray, lengths: np.ndarray, room: int) -> bool:
        """Whether all chunks have some length and lie within the first `room` bytes."""
        if (lengths <= shard.CHECKSUM_BYTES).any() or (lengths > room).any():
            return False
        return not (offsets > room - lengths).any()
