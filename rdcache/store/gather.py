"""Gathering samples out of shards: each shard's index is read once, the files are mapped, and a
batch is copied straight into one buffer.

Knows objects, offsets and bytes; which samples may be read is the reader's question.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from threading import Lock
from typing import Any
from weakref import WeakSet

import numpy as np
import torch

from rdcache.errors import CorruptShardError
from rdcache.store import arrays, shard
from rdcache.store.buffers import copying_threads, empty_tensor, fill_rows, stored_dtype
from rdcache.store.compression import largest_shard
from rdcache.store.objects import ReadableObjects
from rdcache.store.pages import Residency, ask_for
from rdcache.store.picks import Picks, Places
from rdcache.store.spec import STORED, ShardRef, StoreLayout, TapSpec
from rdcache.store.window import Window

EMPTY = np.empty(0, np.int64)
USE_SECONDS = 60.0  # after which it is noted again that files are in use


def as_stored(tensors: torch.Tensor) -> np.ndarray:
    """Tensors as the numbers that a store holds: bfloat16, which NumPy lacks, as bits in uint16."""
    as_bits = tensors.view(torch.uint16) if tensors.dtype == torch.bfloat16 else tensors
    return as_bits.numpy()


_taps: WeakSet[MappedTap] = WeakSet()  # of this process


class MappedTap:
    """All shards of one tap, mapped as they are first touched, until they have to make room.

    Safe to pickle and to use after a fork: each process maps the files for itself.

    Args:
        digests: uint8 (views, shards, 32), the sha256 that each shard is compared with as it is
            first touched; without them the checksum of its index has to do.
        outcome: uint8 (views, samples), what became of each; `at_once` gives what is stored only.
        check_payloads: compare each payload with its crc32c as it is first read.

    Attributes:
        neighbours: the taps that a download for this one may take the room of; this one is one.
    """

    def __init__(
        self,
        objects: ReadableObjects,
        layout: StoreLayout,
        tap: TapSpec,
        digests: np.ndarray | None,
        outcome: np.ndarray,
        *,
        check_payloads: bool = False,
    ) -> None:
        self.objects = objects
        self.layout = layout
        self.tap = tap
        self.digests = digests
        self.outcome = outcome
        self.check_payloads = check_payloads
        self.neighbours = [self]
        self._forget()
        _taps.add(self)

    def __getstate__(self) -> dict[str, Any]:
        own = ("objects", "layout", "tap", "digests", "outcome", "check_payloads", "neighbours")
        return {name: getattr(self, name) for name in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()
        _taps.add(self)

    def _forget(self) -> None:
        self._lock = Lock()
        self._maps: dict[int, np.ndarray] = {}
        self._residency = Residency(self.layout.shard_samples)
        self._used: set[int] = set()
        self._noted = time.monotonic()  # when it was noted last which were used
        # Where each payload ends in its shard; 0 where there is none, or its shard was not touched:
        # pages of zeros that nobody writes to take no memory.
        self._stops = np.zeros((self.layout.views, self.layout.samples), np.int64)
        self._trusted = np.zeros(self._stops.shape, bool)  # which have matched their crc32c
        self._window: Window | None = None  # onto shards that stay mapped, not compressed
        if self.objects.lasting and self.tap.codec == "none":
            self._window = Window(*self._stops.shape, self.tap.nbytes)
        self._dtype = self.tap.stored_dtype
        self._size = math.prod(self.tap.shape)

    def at_once(
        self, samples: np.ndarray, views: np.ndarray | int, out: torch.Tensor | None = None
    ) -> torch.Tensor | None:
        """A batch by one look at where its samples lie, and one indexing of mapped memory where no
        threads are quicker: beside a copy that drives all code out of the processor's cache, every
        check that is made costs what a good part of the copy does.

        Args:
            samples: int64 (B,), any.
            views: the same, or one for all.
            out: as for `gather`.

        Returns:
            What `gather` gives. None where that is to be asked, which also says what is wrong:
            numbers are out of range, samples are not stored; shards are still to be mapped, are not
            in memory or may go; payloads are compressed.

        Raises:
            CorruptShardError: a payload does not match its crc32c.
        """
        window = self._window
        if window is None or not self._residency.all_there(len(self._maps)):
            return None
        unverified = stated = EMPTY
        try:
            numbers = window.numbers(samples, views)
            addresses = window.find(numbers)
            if self.check_payloads and len(unverified := np.flatnonzero(addresses < 0)):
                addresses = np.abs(addresses)
                stated = window.checksums(addresses[unverified])
            batch, rows = self._copied(window, addresses, out)
        except IndexError:
            return None
        self._residency.count(len(samples))
        if len(unverified):
            found = [shard.crc32c(rows[place]) for place in unverified.tolist()]
            if len(wrong := np.flatnonzero(stated != found)):
                raise self._corrupt_at(numbers[unverified[wrong[0]]])
            self._trusted.put(numbers[unverified], True)
            window.verify(numbers[unverified])
        return batch

    def _copied(
        self, window: Window, addresses: np.ndarray, out: torch.Tensor | None
    ) -> tuple[torch.Tensor, np.ndarray]:
        """A batch of what a window shows, and its samples as uint8 (B, bytes)."""
        count = len(addresses)
        if out is None and copying_threads(count * self.tap.nbytes) < 2:
            rows = window.copies(addresses)
            batch = torch.from_numpy(rows.view(self._dtype).reshape(count, *self.tap.shape))
            return batch.view(torch.bfloat16) if self.tap.dtype == "bfloat16" else batch, rows
        payloads = window.payloads(addresses)
        batch, rows = self._batch(count, out)
        fill_rows(rows, payloads)
        return batch, rows

    def gather(
        self, picks: Picks, *, verify: bool = False, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Copy samples out of the mapped files: all at once where they are mapped or may stay so,
        else shard by shard, so that no more of them are held than are kept.

        Args:
            picks: within range and stored.
            verify: compare each payload with its crc32c.
            out: where to, (B, *tap), contiguous, in the stored dtype.

        Returns:
            (B, *tap) in the stored dtype.

        Raises:
            CorruptShardError: a shard is missing, cut short, or its index is damaged; a payload
                does not match. What is in `out` is of no use then.
        """
        layout = self.layout
        in_view = picks.samples // layout.shard_samples
        keys = (in_view + picks.views * layout.shards_per_view).tolist()
        touched = set(keys)
        if self.objects.lasting:
            new: set[int] = set()
            self._map_new(touched)
        else:
            with self._lock:  # threads may share a tap
                new = touched - self._maps.keys()
            self._note_use(touched - new, now=bool(new))
        maps = self._maps  # the same also if another thread lets some go
        if new or not touched <= maps.keys():
            del maps  # what is let go meanwhile is not to be held here
            return self._gather_by_shard(picks, keys, new, verify, out)
        # Nothing is allocated before shards have shown that samples are as large as their tap says.
        batch, rows = self._batch(len(keys), out)
        self._take(rows, self._places(range(len(keys)), picks.numbers, keys, maps), verify)
        return batch

    def _gather_by_shard(
        self,
        picks: Picks,
        keys: list[int],
        new: set[int],
        verify: bool,
        out: torch.Tensor | None,
    ) -> torch.Tensor:
        rows_of: dict[int, list[int]] = {key: [] for key in sorted(keys, key=new.__contains__)}
        for row, key in enumerate(keys):
            rows_of[key].append(row)
        self._source(next(iter(rows_of)))  # before anything is allocated, as above
        batch, rows = self._batch(len(keys), out)

        def take_from(key: int) -> None:
            own = rows_of[key]
            source = {key: self._source(key)}
            places = self._places(own, picks.numbers[own], [key] * len(own), source)
            self._take(rows, places, verify)

        for key in rows_of:
            take_from(key)  # a call of its own, so that the shard can go before the next one comes
        return batch

    def _places(
        self,
        rows: Sequence[int],
        numbers: np.ndarray,
        keys: Sequence[int],
        maps: Mapping[int, np.ndarray],
    ) -> Places:
        """Find samples in their mapped shards, and ask for those that are not in memory."""
        stops = self._stops.take(numbers)
        lengths = self._lengths_of(numbers)
        starts = (stops - lengths).tolist()
        if starts and min(starts) < 0:
            raise self._corrupt_at(numbers[np.argmin(starts)])
        if absent := self._residency.absent(set(keys), maps, len(keys)):
            for key, start, stop in zip(keys, starts, stops.tolist(), strict=True):
                if key in absent:
                    ask_for(maps[key], start, stop - start)
        return Places(rows, numbers, [maps[key] for key in keys], starts, lengths)

    def _lengths_of(self, numbers: np.ndarray) -> int | np.ndarray:
        """How long payloads are in shards that have been mapped: one length, or int64 (B,).

        Args:
            numbers: as in `Picks`.
        """
        return self.tap.nbytes

    def _take(self, rows: np.ndarray, places: Places, verify: bool) -> None:
        """Fill rows of a batch, uint8 (B, bytes), from the mapped shards."""
        size = self.tap.nbytes
        there = zip(places.sources, places.starts, strict=True)
        payloads = [source[start : start + size] for source, start in there]
        unchecked = self._unchecked(places.numbers, verify)
        if unchecked is None and len(payloads) == len(rows):
            fill_rows(rows, payloads)
            return
        for place, (row, payload) in enumerate(zip(places.rows, payloads, strict=True)):
            rows[row] = payload
            # The copy is what is checked: the caller gets the very bytes that matched, and they are
            # in the processor's cache now.
            if unchecked is not None and unchecked[place]:
                self._require_match(rows[row], places, place, places.starts[place] + size)
        if unchecked is not None and self._window is not None:
            self._window.verify(places.numbers)

    def _unchecked(self, numbers: np.ndarray, verify: bool) -> list[bool] | None:
        """Which payloads are to be compared with their crc32c; None where none is."""
        if verify:
            return [True] * len(numbers)
        if not self.check_payloads:
            return None
        trusted = self._trusted.take(numbers)
        return None if trusted.all() else (~trusted).tolist()

    def _require_match(self, payload: np.ndarray, places: Places, place: int, end: int) -> None:
        """Compare a payload with its crc32c, which lies at `end` of its shard."""
        if not shard.matches(payload, places.sources[place][end : end + shard.CHECKSUM_BYTES]):
            raise self._corrupt_at(places.numbers[place])
        self._trusted.put(places.numbers[place], True)

    def touch_all(self) -> None:
        """Map every shard, and so compare each with its digest where there are any.

        Raises:
            CorruptShardError: a shard is missing or damaged.
        """
        for ref in self.layout.shards():
            self._source(ref.view * self.layout.shards_per_view + ref.index)

    def let_go(self) -> None:
        """Forget maps of files that had to make room: the space is free when nobody maps them."""
        with self._lock:
            gone = self.objects.gone(self._names(self._maps))
            if gone:
                kept = zip(self._maps.items(), self._names(self._maps), strict=True)
                self._maps = dict(item for item, name in kept if name not in gone)

    def _batch(self, count: int, out: torch.Tensor | None) -> tuple[torch.Tensor, np.ndarray]:
        """A batch to be filled, and its samples as uint8 (B, bytes)."""
        shape = (count, *self.tap.shape)
        batch = empty_tensor(shape, stored_dtype(self.tap)) if out is None else out
        rows = as_stored(batch).reshape(count, self._size)
        return batch, rows.view(np.uint8)

    def _source(self, key: int) -> np.ndarray:
        """One shard, mapped now if it was not."""
        before = self.objects.downloads
        with self._lock:
            if key not in self._maps:
                self._map_all([key])
            source = self._maps[key]
        if self.objects.downloads != before:
            for tap in self.neighbours:
                tap.let_go()
        return source

    def _note_use(self, keys: set[int], *, now: bool) -> None:
        """Note which shards are in use, in time before others have to make room."""
        self._used = self._used | keys  # a new set: another thread may be walking the old one
        if now or time.monotonic() - self._noted > USE_SECONDS:
            used, self._used, self._noted = self._used, set(), time.monotonic()
            self.objects.use(self._names(used))

    def _names(self, keys: Iterable[int]) -> Iterable[str]:
        per_view = self.layout.shards_per_view
        return (arrays.tap_object(self.tap, *divmod(key, per_view)) for key in keys)

    def _map_new(self, keys: set[int]) -> None:
        """Map those of some shards that are not mapped; all stay so."""
        if keys <= self._maps.keys():
            return
        with self._lock:
            self._map_all(sorted(keys - self._maps.keys()))

    def _map_all(self, keys: Sequence[int]) -> None:
        """Map shards, and note where their payloads lie. Their indexes are asked for at once."""
        numbers = [divmod(key, self.layout.shards_per_view) for key in keys]
        found = [self._mapped(view, index) for view, index in numbers]
        tail = shard.index_bytes(self.layout.shard_samples)
        for data in found if len(found) > 1 else ():
            ask_for(data, max(data.size - tail, 0), min(tail, data.size))
        for key, (view, index), data in zip(keys, numbers, found, strict=True):
            self._admit(view, index, data)
            if self._window is not None:  # before another thread can verify what it maps
                self._add_to(self._window, view, index, data)
            self._maps[key] = data

    def _add_to(self, window: Window, view: int, index: int, data: np.ndarray) -> None:
        ref = self.layout.shard(view, index)
        samples = slice(ref.start, ref.stop)
        starts = self._stops[view, samples] - self.tap.nbytes
        there = self.outcome[view, samples] == STORED
        starts = np.where(there, starts, -1)
        window.add(data, view, samples, starts, verified=not self.check_payloads)

    def _mapped(self, view: int, index: int) -> np.ndarray:
        """One shard as uint8 (bytes,); nothing of it has been looked at."""
        # Of a hostile index more than this would be no use either.
        most = largest_shard(self.tap, self.layout.shard_samples, self.layout.shard_samples)
        data = self.objects.mapped(arrays.tap_object(self.tap, view, index), most)
        if data is None:
            raise self._corrupt(view, self.layout.shard(view, index).start)
        return data

    def _admit(self, view: int, index: int, data: np.ndarray) -> None:
        """Check a shard that is touched for the first time, and note where its payloads lie."""
        ref = self.layout.shard(view, index)
        chunks = self.layout.shard_samples
        tail = shard.index_bytes(chunks)
        try:
            self._require_digest(data, view, index)
            table = shard.decode_index(data[-tail:].data, chunks)
        except (ValueError, CorruptShardError):
            raise self._corrupt(view, ref.start) from None
        present = table[:, 0] != shard.ABSENT
        offsets, lengths = table[present].T
        if not self._fit(offsets, lengths, data.size - tail):
            raise self._corrupt(view, ref.start)
        self._note(ref, np.where(present[:, None], table, np.uint64(0)).astype(np.int64))

    def _note(self, ref: ShardRef, table: np.ndarray) -> None:
        """Note where the payloads of a shard lie.

        Args:
            table: int64 (chunks, 2), offset and length with checksum; zeros for an absent chunk.
        """
        stops = np.maximum(table.sum(1) - shard.CHECKSUM_BYTES, 0)
        self._trusted[ref.view, ref.start : ref.stop] = False  # it may have been downloaded again
        self._stops[ref.view, ref.start : ref.stop] = stops[: ref.stop - ref.start]

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

    def _corrupt_at(self, number: int) -> CorruptShardError:
        return self._corrupt(*divmod(int(number), self.layout.samples))

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


def _begin_anew() -> None:
    for tap in list(_taps):
        tap._forget()


os.register_at_fork(after_in_child=_begin_anew)
