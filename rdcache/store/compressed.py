"""Gathering samples out of compressed shards: the map of a tap, with samples decompressed out of it
by a few threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from rdcache.store import shard
from rdcache.store.compression import decompress
from rdcache.store.gather import MappedTap

THREADS = 4
WORTH_THREADS = 2**18  # bytes of a batch; less is done before threads have started


class CompressedTap(MappedTap):
    """All shards of one compressed tap. Reads what `MappedTap` reads, with the same errors."""

    def _forget(self) -> None:
        super()._forget()
        self._lengths = np.zeros((self.layout.views, self.layout.samples), np.int64)

    def gather(self, samples: np.ndarray, views: np.ndarray) -> torch.Tensor:
        """Decompress samples: (B, *tap) in the stored dtype.

        Raises:
            CorruptShardError: also where a payload cannot be decompressed to its length.
        """

        def take(
            rows: np.ndarray,
            numbers: Sequence[int],
            sources: Sequence[np.ndarray],
            starts: Sequence[int],
        ) -> None:
            lengths = self._lengths[views[numbers], samples[numbers]].tolist()
            payloads = [
                source[start : start + length]
                for source, start, length in zip(sources, starts, lengths, strict=True)
            ]
            self._decompress(payloads, rows, numbers, samples, views)

        return self._visit(samples, views, take)

    def gather_verified(self, samples: np.ndarray, views: np.ndarray) -> torch.Tensor:
        """The same, with each payload compared with its crc32c before it is decompressed."""

        def take(
            rows: np.ndarray,
            numbers: Sequence[int],
            sources: Sequence[np.ndarray],
            starts: Sequence[int],
        ) -> None:
            lengths = self._lengths[views[numbers], samples[numbers]].tolist()
            payloads = []
            for number, source, start, length in zip(
                numbers, sources, starts, lengths, strict=True
            ):
                end = start + length
                payload = source[start:end].copy()  # the bytes that are checked are decompressed
                if not shard.matches(payload, source[end : end + shard.CHECKSUM_BYTES]):
                    raise self._corrupt(int(views[number]), int(samples[number]))
                payloads.append(payload)
            self._decompress(payloads, rows, numbers, samples, views)

        return self._visit(samples, views, take)

    def _decompress(
        self,
        payloads: list[np.ndarray],
        rows: np.ndarray,
        numbers: Sequence[int],
        samples: np.ndarray,
        views: np.ndarray,
    ) -> None:
        """Decompress payloads into those rows of a batch that have these numbers."""

        def fill(place: int) -> None:
            number = numbers[place]
            try:
                decompress(self.tap, payloads[place], rows[number])
            except ValueError:
                raise self._corrupt(int(views[number]), int(samples[number])) from None

        places = range(len(payloads))
        if len(payloads) * self.tap.nbytes < WORTH_THREADS:
            for place in places:
                fill(place)
        else:
            with ThreadPoolExecutor(THREADS, thread_name_prefix="decompress") as pool:
                for _ in pool.map(fill, places):
                    pass

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
