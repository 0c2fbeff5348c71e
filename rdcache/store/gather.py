"""Gathering samples out of shards: each shard's index is read once, the files are mapped, and a
batch is copied straight into one buffer.

Knows objects, offsets and bytes; which samples may be read is the reader's question.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np
import torch

from rdcache.errors import CorruptShardError
from rdcache.store import arrays, shard
from rdcache.store.compression import largest_shard
from rdcache.store.objects import ReadableObjects
from rdcache.store.spec import StoreLayout, TapSpec

USE_SECONDS = 60.0  # after which it is noted again that files are in use


def as_stored(tensors: torch.Tensor) -> np.ndarray:
    """Tensors as the numbers that a store holds: bfloat16, which NumPy lacks, as bits in uint16."""
    as_bits = tensors.view(torch.uint16) if tensors.dtype == torch.bfloat16 else tensors
    return as_bits.numpy()


@dataclass(frozen=True)
class Places:
    """Where some samples of a batch lie.

    Attributes:
        rows: their numbers in the batch.
        samples, views: which they are.
        sources: the mapped shard of each.
        starts: where its payload begins there.
    """

    rows: Sequence[int]
    samples: np.ndarray
    views: np.ndarray
    sources: Sequence[np.ndarray]
    starts: Sequence[int]


class MappedTap:
    """All shards of one tap, mapped as they are first touched, until they have to make room.

    Safe to pickle and to use after a fork: each process maps the files for itself.

    Args:
        digests: uint8 (views, shards, 32), the sha256 that each shard is compared with as it is
            first touched; without them the checksum of its index has to do.

    Attributes:
        neighbours: the taps that a download for this one may take the room of; this one is one.
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
        self.neighbours = [self]
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        names = ("objects", "layout", "tap", "digests", "neighbours")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._lock = Lock()
        self._maps: dict[int, np.ndarray] = {}
        self._used: set[int] = set()
        self._noted = time.monotonic()  # when it was noted last which were used
        # Where each sample's payload begins in its shard; -1 where there is none.
        self._starts = np.full((self.layout.views, self.layout.samples), -1, np.int64)

    def _notice_fork(self) -> None:
        if self._process != os.getpid():
            self._forget()

    def gather(
        self, samples: np.ndarray, views: np.ndarray, *, verify: bool = False
    ) -> torch.Tensor:
        """Copy samples out of the mapped files: all at once where they are mapped, else shard by
        shard, so that no more of them are held than are kept.

        Args:
            samples, views: int64 (B,), within range and stored.
            verify: compare each payload with its crc32c.

        Returns:
            (B, *tap) in the stored dtype.

        Raises:
            CorruptShardError: a shard is missing, cut short, or its index is damaged; a payload
                does not match.
        """
        self._notice_fork()
        keys = (views * self.layout.shards_per_view + samples // self.layout.shard_samples).tolist()
        touched = set(keys)
        with self._lock:  # threads may share a tap
            new = touched - self._maps.keys()
            sources = [] if new else [self._maps[key] for key in keys]
        self._note_use(touched - new, now=bool(new))
        if not new:
            starts = self._found(samples, views)
            batch, rows = self._allocate(len(samples))
            places = Places(range(len(keys)), samples, views, sources, starts)
            self._take(rows, places, verify=verify)
            return batch
        numbers: dict[int, list[int]] = {key: [] for key in sorted(touched, key=new.__contains__)}
        for number, key in enumerate(keys):
            numbers[key].append(number)
        # Nothing is allocated before a shard has shown that samples are as large as their tap says.
        self._source(next(iter(numbers)))
        batch, rows = self._allocate(len(samples))

        def take_from(key: int) -> None:
            source, chosen = self._source(key), numbers[key]
            where = samples[chosen], views[chosen]
            places = Places(chosen, *where, [source] * len(chosen), self._found(*where))
            self._take(rows, places, verify=verify)

        for key in numbers:
            take_from(key)  # a call of its own, so that the shard can go before the next one comes
        return batch

    def _take(self, rows: np.ndarray, places: Places, *, verify: bool) -> None:
        """Fill rows of a batch, uint8 (B, bytes), from the mapped shards."""
        size = self.tap.nbytes
        for row, source, start in zip(places.rows, places.sources, places.starts, strict=True):
            rows[row] = source[start : start + size]
        if not verify:
            return
        # The copies are what is checked: the caller gets the very bytes that matched.
        for place, row in enumerate(places.rows):
            end = places.starts[place] + size
            stated = places.sources[place][end : end + shard.CHECKSUM_BYTES]
            if not shard.matches(rows[row], stated):
                raise self._corrupt_at(places, place)

    def touch_all(self) -> None:
        """Map every shard, and so compare each with its digest where there are any.

        Raises:
            CorruptShardError: a shard is missing or damaged.
        """
        self._notice_fork()
        for ref in self.layout.shards():
            self._source(ref.view * self.layout.shards_per_view + ref.index)

    def let_go(self) -> None:
        """Forget maps of files that had to make room: the space is free when nobody maps them."""
        self._notice_fork()
        with self._lock:
            gone = self.objects.gone(self._names(self._maps))
            if gone:
                kept = zip(self._maps.items(), self._names(self._maps), strict=True)
                self._maps = dict(item for item, name in kept if name not in gone)

    def _allocate(self, count: int) -> tuple[torch.Tensor, np.ndarray]:
        batch = torch.empty((count, *self.tap.shape), dtype=getattr(torch, self.tap.dtype))
        rows = batch.reshape(-1).view(torch.uint8).numpy().reshape(count, self.tap.nbytes)
        return batch, rows

    def _source(self, key: int) -> np.ndarray:
        """One shard, mapped now if it was not."""
        before = self.objects.downloads
        with self._lock:
            source = self._maps.get(key)
            if source is None:
                source = self._maps[key] = self._map(*divmod(key, self.layout.shards_per_view))
        if self.objects.downloads != before:
            for tap in self.neighbours:
                tap.let_go()
        return source

    def _found(self, samples: np.ndarray, views: np.ndarray) -> list[int]:
        """Where each payload begins in its shard, which has been mapped."""
        starts = self._starts[views, samples]
        if (starts < 0).any():
            first = int(np.argmin(starts))
            raise self._corrupt(int(views[first]), int(samples[first]))
        found: list[int] = starts.tolist()
        return found

    def _note_use(self, keys: set[int], *, now: bool) -> None:
        """Note which shards are in use, in time before others have to make room."""
        self._used = self._used | keys  # a new set: another thread may be walking the old one
        if now or time.monotonic() - self._noted > USE_SECONDS:
            used, self._used, self._noted = self._used, set(), time.monotonic()
            self.objects.use(self._names(used))

    def _names(self, keys: Iterable[int]) -> Iterable[str]:
        per_view = self.layout.shards_per_view
        return (arrays.tap_object(self.tap, *divmod(key, per_view)) for key in keys)

    def _map(self, view: int, index: int) -> np.ndarray:
        """Map one shard, uint8 (bytes,), and note where its payloads begin."""
        ref = self.layout.shard(view, index)
        chunks = self.layout.shard_samples
        tail = shard.index_bytes(chunks)
        # Of a hostile index more than this would be no use either.
        most = largest_shard(self.tap, chunks, chunks)
        data = self.objects.mapped(arrays.tap_object(self.tap, view, index), most)
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

    def _corrupt_at(self, places: Places, place: int) -> CorruptShardError:
        return self._corrupt(int(places.views[place]), int(places.samples[place]))

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
