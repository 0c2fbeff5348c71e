"""Gathering samples out of compressed shards: the map of a tap, with samples decompressed out of it
by a few threads.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rdcache.store import shard
from rdcache.store.compression import decompress
from rdcache.store.gather import MappedTap, Places

THREADS = 4
WORTH_THREADS = 2**18  # bytes of a batch; less is done before threads have started


class CompressedTap(MappedTap):
    """All shards of one compressed tap. Reads what `MappedTap` reads, with the same errors."""

    def _forget(self) -> None:
        super()._forget()
        self._lengths = np.zeros((self.layout.views, self.layout.samples), np.int64)

    def _take(self, rows: np.ndarray, places: Places, *, verify: bool) -> None:
        payloads = [self._payload(places, place, verify) for place in range(len(places.rows))]

        def fill(place: int) -> None:
            try:
                decompress(self.tap, payloads[place], rows[places.rows[place]])
            except ValueError:
                raise self._corrupt_at(places, place) from None

        if len(payloads) * self.tap.nbytes < WORTH_THREADS:
            for place in range(len(payloads)):
                fill(place)
        else:
            with ThreadPoolExecutor(THREADS, thread_name_prefix="decompress") as pool:
                for _ in pool.map(fill, range(len(payloads))):
                    pass

    def _payload(self, places: Places, place: int, verify: bool) -> np.ndarray:
        """One compressed sample."""
        source, start = places.sources[place], places.starts[place]
        end = start + int(self._lengths[places.views[place], places.samples[place]])
        if not verify:
            return source[start:end]
        payload = source[start:end].copy()  # the bytes that are checked are decompressed
        if not shard.matches(payload, source[end : end + shard.CHECKSUM_BYTES]):
            raise self._corrupt_at(places, place)
        return payload

    def _fit(self, offsets: np.ndarray, lengths: np.ndarray, room: int) -> bool:
        """Whether all chunks have some length and lie within the first `room` bytes."""
        if (lengths <= shard.CHECKSUM_BYTES).any() or (lengths > room).any():
            return False
        return not (offsets > room - lengths).any()

    def _map(self, view: int, index: int) -> np.ndarray:
        """Map one shard, and note also how long its payloads are."""
        data = super()._map(view, index)
        ref, chunks = self.layout.shard(view, index), self.layout.shard_samples
        table = shard.decode_index(data[-shard.index_bytes(chunks) :].data, chunks)
        lengths = np.where(table[:, 0] == shard.ABSENT, shard.CHECKSUM_BYTES, table[:, 1])
        lengths = lengths.astype(np.int64) - shard.CHECKSUM_BYTES
        self._lengths[view, ref.start : ref.stop] = lengths[: ref.stop - ref.start]
        return data
