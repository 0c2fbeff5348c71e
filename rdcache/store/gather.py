"""Gathering samples out of shards: each shard's index is read once, the files are mapped, and a
batch is copied straight into one buffer.

Knows objects, offsets and bytes; which samples may be read is the reader's question.
"""

from __future__ import annotations

import hashlib
import os
from threading import Lock
from typing import Any

import numpy as np
import torch

from rdcache.errors import CorruptShardError
from rdcache.store import arrays, shard
from rdcache.store.objects import ReadableObjects
from rdcache.store.spec import StoreLayout, TapSpec


def as_stored(tensors: torch.Tensor) -> np.ndarray:
    """Tensors as the numbers that a store holds: bfloat16, which NumPy lacks, as bits in uint16."""
    as_bits = tensors.view(torch.uint16) if tensors.dtype == torch.bfloat16 else tensors
    return as_bits.numpy()


class MappedTap:
    """All shards of one tap, mapped as they are first touched.

    Safe to pickle and to use after a fork: each process maps the files for itself.

    Args:
        digests: uint8 (views, shards, 32), the sha256 that each shard is compared with as it is
            first touched; without them the checksum of its index has to do.
    """

    def __init__(
        self,
        objects: ReadableObjects,
        layout: StoreLayout,
        tap: TapSpec,
        digests: np.ndarray | None = None,
    ) -> None:
        self.objects = objects
        self.layout = layout
        self.tap = tap
        self.digests = digests
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        names = ("objects", "layout", "tap", "digests")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = Lock()
        self._maps: dict[int, np.ndarray] = {}
        # Where each sample's payload begins in its shard; -1 where there is none.
        self._starts = np.full((self.layout.views, self.layout.samples), -1, np.int64)

    def gather(self, samples: np.ndarray, views: np.ndarray) -> torch.Tensor:
        """Copy samples out of the mapped files.

        Args:
            samples, views: int64 (B,), within range and stored.

        Returns:
            (B, *tap) in the stored dtype.

        Raises:
            CorruptShardError: a shard is missing, cut short, or its index is damaged.
        """
        sources, starts = self._locate(samples, views)
        batch, rows = self._allocate(len(samples))
        size = self.tap.nbytes
        for row, source, start in zip(rows, sources, starts, strict=True):
            row[:] = source[start : start + size]
        return batch

    def gather_verified(self, samples: np.ndarray, views: np.ndarray) -> torch.Tensor:
        """The same, with each payload compared with its crc32c.

        Raises:
            CorruptShardError: also where a payload does not match.
        """
        sources, starts = self._locate(samples, views)
        batch, rows = self._allocate(len(samples))
        size = self.tap.nbytes
        for number, (source, start) in enumerate(zip(sources, starts, strict=True)):
            # The copy is what is checked: the caller gets the very bytes that matched.
            rows[number] = source[start : start + size]
            stated = source[start + size : start + size + shard.CHECKSUM_BYTES]
            if not shard.matches(rows[number], stated):
                raise self._corrupt(int(views[number]), int(samples[number]))
        return batch

    def touch_all(self) -> None:
        """Map every shard, and so compare each with its digest where there are any.

        Raises:
            CorruptShardError: a shard is missing or damaged.
        """
        for ref in self.layout.shards():
            self._locate(np.array([ref.start]), np.array([ref.view]))

    def _allocate(self, count: int) -> tuple[torch.Tensor, np.ndarray]:
        batch = torch.empty((count, *self.tap.shape), dtype=getattr(torch, self.tap.dtype))
        rows = batch.reshape(-1).view(torch.uint8).numpy().reshape(count, self.tap.nbytes)
        return batch, rows

    def _locate(self, samples: np.ndarray, views: np.ndarray) -> tuple[list[np.ndarray], list[int]]:
        """For each pair the mapped shard and the offset of its payload."""
        if self._process != os.getpid():
            self._forget()
        per_view, size = self.layout.shards_per_view, self.layout.shard_samples
        keys = (views * per_view + samples // size).tolist()
        with self._lock:  # threads may share a tap
            if new := set(keys) - self._maps.keys():
                self._maps |= {key: self._map(*divmod(key, per_view)) for key in new}
            sources = [self._maps[key] for key in keys]
            if new:
                self._let_go(per_view)
        starts = self._starts[views, samples]
        if (starts < 0).any():
            first = int(np.argmin(starts))
            raise self._corrupt(int(views[first]), int(samples[first]))
        return sources, starts.tolist()

    def _let_go(self, per_view: int) -> None:
        """Forget maps of files that had to make room: the space is free when nobody maps them."""
        names = {key: arrays.tap_object(self.tap, *divmod(key, per_view)) for key in self._maps}
        self._maps = {key: it for key, it in self._maps.items() if self.objects.kept(names[key])}

    def _map(self, view: int, index: int) -> np.ndarray:
        """Map one shard, uint8 (bytes,), and note where its payloads begin."""
        ref = self.layout.shard(view, index)
        chunks = self.layout.shard_samples
        tail = shard.index_bytes(chunks)
        data = self.objects.mapped(arrays.tap_object(self.tap, view, index))
        if data is None:
            raise self._corrupt(view, ref.start)
        try:
            self._require_digest(data, view, index)
            table = shard.decode_index(data[-tail:].data, chunks)
        except (ValueError, CorruptShardError):
            raise self._corrupt(view, ref.start) from None
        present = table[:, 0] != shard.ABSENT
        offsets, lengths = table[present].T
        if not self._fit(offsets, lengths, data.size - tail):
            raise self._corrupt(view, ref.start)
        starts = np.full(chunks, -1, np.int64)
        starts[present] = offsets.astype(np.int64)
        self._starts[view, ref.start : ref.stop] = starts[: ref.stop - ref.start]
        return data

    def _fit(self, offsets: np.ndarray, lengths: np.ndarray, room: int) -> bool:
        """Whether all chunks have the length of a sample and lie within the first `room` bytes."""
        length = self.tap.nbytes + shard.CHECKSUM_BYTES
        # Unsigned numbers: compared before anything is added to them, so that nothing wraps.
        last = room - length
        return not (
            last < 0 < len(offsets) or (lengths != length).any() or (offsets > max(last, 0)).any()
        )

    def _require_digest(self, data: np.ndarray, view: int, index: int) -> None:
        if self.digests is None:
            return
        if hashlib.sha256(data.data).digest() != self.digests[view, index].tobytes():
            raise CorruptShardError("a shard does not match its receipt.")

    def _corrupt(self, view: int, sample: int) -> CorruptShardError:
        index = sample // self.layout.shard_samples
        ref = self.layout.shard(view, index)
        return CorruptShardError(
            "a shard is missing, cut short, or does not match its checksum.",
            store=self.objects.location,
            tap=self.tap.name,
            shard=f"view {view}, number {index} (samples {ref.start} to {ref.stop - 1})",
            file=arrays.tap_object(self.tap, view, index),
            next="run the `rdcache extract` that makes this store again",
        )
