"""Opening a store, and reading batches of cached tensors from it.

The index of every shard is read once; a batch is then gathered straight from the mapped files into
one buffer for each tap. Nothing of this depends on zarr-python's speed; `Store.array` is the plain
Zarr route, which gives the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import dask.array
import numpy as np
import torch
import zarr

from rdcache.errors import (
    CorruptShardError,
    StoreFormatError,
    StoreIncompleteError,
    UnknownNameError,
    UsageError,
)
from rdcache.store import arrays, shard
from rdcache.store.manifest import fingerprint_of, layout_of, read_manifest
from rdcache.store.objects import LocalObjects
from rdcache.store.spec import SPLITS, Fingerprint, ShardRef, TapSpec


def open_store(location: str | Path, *, allow_incomplete: bool = False) -> Store:
    """Open a store for reading.

    Args:
        allow_incomplete: open one whose extraction has not finished, for a look at it.

    Raises:
        StoreNotFoundError: no store lies there.
        StoreFormatError: another schema, or arrays that contradict the manifest.
        StoreIncompleteError: its extraction has not finished.
    """
    path = Path(location)
    store = Store(path, read_manifest(path))
    if not store.complete and not allow_incomplete:
        shards = store.layout.shards()
        receipts = LocalObjects(path).names("receipt/c")
        there = sum(arrays.receipt_object(each) in receipts for each in shards)
        raise StoreIncompleteError(
            f"this store is incomplete: {there} of {len(shards)} shards are there.",
            store=path,
            next="run the `rdcache extract` that makes it again; it goes on where it stopped",
        )
    return store


@dataclass(frozen=True)
class _MappedShard:
    """One shard object in memory: its bytes, and where each sample's payload begins.

    Attributes:
        starts: int64 (shard_samples,), -1 for an absent chunk.
    """

    data: np.ndarray
    starts: np.ndarray


class Store:
    """A store that is open for reading. Safe to pickle and to use after a fork: files are mapped
    anew in each process.

    Attributes:
        location: its folder.
        manifest: its description of itself, a dictionary of JSON values.
        fingerprint: what decided its numbers.
        taps: tap name → `TapSpec`.
        extents: for each view, how many leading samples it covers.
        uids, splits: arrays of str in sample order.
        labels, groups: int64 arrays in sample order; group -1 is none.
        view_parameters: float64 (views, samples, columns); `view_columns` names the columns.
    """

    def __init__(self, location: Path, manifest: dict[str, Any]) -> None:
        self.location = location
        self.manifest = manifest
        self.layout = layout_of(manifest, location)
        self.fingerprint: Fingerprint = fingerprint_of(manifest, location)
        self.taps: dict[str, TapSpec] = {tap.name: tap for tap in self.layout.taps}
        self.extents = self.layout.extents
        self._check_arrays()
        group = zarr.open_group(location.as_posix(), mode="r", zarr_format=3)
        raw = self._column(group, "uid", (self.samples, 16))
        self.uids = np.array([row.tobytes().hex() for row in raw])
        self.labels = self._column(group, "label", (self.samples,))
        self.splits = np.array(SPLITS)[self._column(group, "split", (self.samples,))]
        self.groups = self._column(group, "group", (self.samples,))
        view = self._array(group, "view")
        self.view_columns: tuple[str, ...] = tuple(
            map(str, cast("list[str]", view.attrs["columns"]))
        )
        self.view_parameters = self._column(
            group, "view", (self.views, self.samples, len(self.view_columns))
        )
        self._outcome = self._column(group, "outcome", (self.views, self.samples))
        self._shards: dict[tuple[str, int, int], _MappedShard] = {}
        self._process = os.getpid()

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return self.layout.samples

    @property
    def views(self) -> int:
        """How many views there are, the clean one included."""
        return self.layout.views

    @property
    def complete(self) -> bool:
        """Whether the extraction has finished."""
        return bool(self.manifest["complete"])

    @property
    def nbytes(self) -> int:
        """Bytes of all tap tensors."""
        return self.layout.nbytes()

    def __repr__(self) -> str:
        taps = ", ".join(self.taps)
        return f"Store({str(self.location)!r}: {self.samples} samples, {self.views} views, {taps})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shards": {}}

    def array(self, tap: str) -> zarr.Array[Any]:
        """The tap's Zarr array, axes (view, sample, *tap); bfloat16 as its bits in uint16."""
        group = zarr.open_group(self.location.as_posix(), mode="r", zarr_format=3)
        return self._array(group, f"taps/{self._tap(tap).name}")

    def dask(self, tap: str) -> dask.array.Array:
        """The tap as a lazy dask array, one dask chunk a shard."""
        array = self.array(tap)
        return dask.array.from_zarr(array, chunks=array.shards)

    def available(self, samples: Sequence[int], views: Sequence[int] | int) -> np.ndarray:
        """For each (sample, view) pair, whether its tensors are stored: bool (len(samples),)."""
        rows, sides = self._pairs(samples, views)
        return np.asarray(self._outcome[sides, rows] == 1)

    def read(
        self,
        samples: Sequence[int],
        views: Sequence[int] | int,
        taps: Sequence[str] | None = None,
        *,
        verify: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Read a batch.

        Args:
            samples: sample numbers, in any order, also repeated.
            views: one view for each sample, or one for all.
            taps: tap names; all taps by default.
            verify: compare every payload with its crc32c.

        Returns:
            Tap name → tensor (len(samples), *tap) in the stored dtype, in the order asked for.

        Raises:
            UsageError: a number out of range, or a pair that was not extracted.
            CorruptShardError: bytes that do not match their checksum.
        """
        rows, sides = self._pairs(samples, views)
        self._require_stored(rows, sides)
        names = list(self.taps) if taps is None else list(taps)
        return {name: self._gather(self._tap(name), rows, sides, verify) for name in names}

    def _gather(
        self, tap: TapSpec, rows: np.ndarray, sides: np.ndarray, verify: bool
    ) -> torch.Tensor:
        batch = torch.empty((len(rows), *tap.shape), dtype=getattr(torch, tap.dtype))
        target = batch.view(torch.uint8).numpy().reshape(len(rows), tap.nbytes)
        numbers, places = np.divmod(rows, self.layout.shard_samples)
        for position in range(len(rows)):
            mapped = self._mapped(tap, int(sides[position]), int(numbers[position]))
            start = mapped.starts[places[position]]
            target[position] = mapped.data[start : start + tap.nbytes]
            if verify and not shard.chunk_matches(
                mapped.data[start : start + tap.nbytes + shard.CHECKSUM_BYTES].data
            ):
                raise self._corrupt(tap, int(sides[position]), int(numbers[position]))
        return batch

    def _mapped(self, tap: TapSpec, view: int, number: int) -> _MappedShard:
        """The shard's bytes, mapped at first use; each process maps its own."""
        if self._process != os.getpid():
            self._shards, self._process = {}, os.getpid()
        key = (tap.name, view, number)
        if key not in self._shards:
            self._shards[key] = self._map(tap, view, number)
        return self._shards[key]

    def _map(self, tap: TapSpec, view: int, number: int) -> _MappedShard:
        path = self.location / arrays.tap_object(tap, ShardRef(view, number, 0, 0))
        chunks = self.layout.shard_samples
        try:
            data = np.memmap(path, np.uint8, mode="r")
            index = shard.decode_index(data[-shard.index_bytes(chunks) :].data, chunks)
        except (OSError, ValueError, CorruptShardError):
            raise self._corrupt(tap, view, number) from None
        present = index[:, 0] != shard.ABSENT
        length = tap.nbytes + shard.CHECKSUM_BYTES
        limit = data.size - shard.index_bytes(chunks)
        starts = np.where(present, index[:, 0], 0).astype(np.int64)
        sane = (index[present, 1] == length).all() and (starts + length <= limit)[present].all()
        if not sane or (starts < 0).any():
            raise self._corrupt(tap, view, number)
        return _MappedShard(data.view(np.ndarray), np.where(present, starts, -1))

    def _corrupt(self, tap: TapSpec, view: int, number: int) -> CorruptShardError:
        return CorruptShardError(
            "a shard is missing, cut short, or does not match its checksum.",
            store=self.location,
            tap=tap.name,
            shard=f"view {view}, number {number}",
            file=arrays.tap_object(tap, ShardRef(view, number, 0, 0)),
            next="delete this store's folder and run its `rdcache extract` again",
        )

    def _pairs(
        self, samples: Sequence[int], views: Sequence[int] | int
    ) -> tuple[np.ndarray, np.ndarray]:
        rows = np.asarray(samples, np.int64).reshape(-1)
        sides = np.broadcast_to(np.asarray(views, np.int64), rows.shape)
        for values, limit, what in ((rows, self.samples, "sample"), (sides, self.views, "view")):
            outside = values[(values < 0) | (values >= limit)]
            if outside.size:
                raise UsageError(
                    f"there is no {what} {outside[0]} in this store.",
                    store=self.location,
                    has=f"{limit} {what}s, counted from 0",
                )
        return rows, sides

    def _require_stored(self, rows: np.ndarray, sides: np.ndarray) -> None:
        outcome = self._outcome[sides, rows]
        if (outcome == 1).all():
            return
        first = int(np.flatnonzero(outcome != 1)[0])
        sample, view = int(rows[first]), int(sides[first])
        if outcome[first] == 2:
            why = "the teacher gave NaN or Inf for it"
        elif sample >= self.extents[view]:
            why = f"only the training samples have views beyond the first ({self.splits[sample]})"
        else:
            why = "its shard is missing"
        raise UsageError(
            f"sample {sample} has no tensors for view {view}.", store=self.location, because=why
        )

    def _tap(self, name: str) -> TapSpec:
        if name not in self.taps:
            raise UnknownNameError.of("tap in this store", name, self.taps)
        return self.taps[name]

    def _check_arrays(self) -> None:
        """Compare each tap array's metadata with the manifest, before anything is allocated."""
        group = zarr.open_group(self.location.as_posix(), mode="r", zarr_format=3)
        for tap in self.layout.taps:
            array = self._array(group, f"taps/{tap.name}")
            expected = (self.layout.views, self.layout.samples, *tap.shape)
            shards = (1, self.layout.shard_samples, *tap.shape)
            if array.shape != expected or array.shards != shards:
                raise StoreFormatError(
                    "the manifest of this store contradicts its arrays.",
                    store=self.location,
                    tap=tap.name,
                    manifest=expected,
                    array=array.shape,
                )

    def _array(self, group: zarr.Group, name: str) -> zarr.Array[Any]:
        try:
            array = group[name]
        except (KeyError, ValueError, TypeError):
            array = None
        if not isinstance(array, zarr.Array):
            raise StoreFormatError(
                "an array of this store is missing.", store=self.location, array=name
            )
        return array

    def _column(self, group: zarr.Group, name: str, shape: tuple[int, ...]) -> np.ndarray:
        array = self._array(group, name)
        if array.shape != shape:
            raise StoreFormatError(
                "the manifest of this store contradicts its arrays.",
                store=self.location,
                array=f"{name} {array.shape}",
                manifest=shape,
            )
        return np.asarray(array[...])
