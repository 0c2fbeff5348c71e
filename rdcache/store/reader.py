"""Reading batches of cached tensors from a store that is open.

A batch is gathered straight from the mapped shards (`gather.py`, or `gather_compressed.py`), so
nothing here depends on zarr-python's speed; `Store.array` is the plain Zarr route, which gives the
same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr

from rdcache.errors import UnknownNameError, UsageError
from rdcache.store.buffers import (
    Buffers,
    empty_tensor,
    read_dtype,
    require_buffer,
    stored_dtype,
)
from rdcache.store.columns import read_columns, read_receipts, require_metadata
from rdcache.store.gather import MappedTap
from rdcache.store.gather_compressed import CompressedTap
from rdcache.store.locations import RemotePath
from rdcache.store.manifest import (
    digests_of,
    fingerprint_of,
    layout_of,
    require_root,
)
from rdcache.store.objects import ReadableObjects
from rdcache.store.picks import Picks
from rdcache.store.quantisation import dequantise
from rdcache.store.spec import (
    NOT_FINITE,
    SPLITS,
    STORED,
    Fingerprint,
    SampleTable,
    ShardRef,
    StoreLayout,
    TapSpec,
)

if TYPE_CHECKING:
    import dask.array

INT64 = np.dtype(np.int64)


class Store:
    """A store that is open for reading. Safe to pickle: files are mapped anew in each process. Safe
    to use after a fork, too, if it lies in a folder; see `RemoteObjects` for buckets.

    Args:
        check_receipts: compare each shard with its receipt when it is first touched.
        check_payloads: compare each payload with its crc32c when it is first read.

    Attributes:
        location: its folder, or its address in a bucket.
        objects: what it is read through.
        manifest: its description of itself, a dictionary of JSON values.
        fingerprint: what decided its numbers.
        taps: tap name → `TapSpec`; the scales of int8 taps are not among them.
        projections: tap name → `Projection`, of taps with fewer channels than the teacher's.
        extents: for each view, how many leading samples it covers.
        uid_bytes: uint8 (samples, 16); `uids` has them as text.
        labels: int64 (samples,), class numbers; multi-label (samples, L), 0 or 1 for each finding.
        groups: int64 (samples,); -1 is none.
        view_parameters: float64 (views, samples, columns); `view_columns` names the columns. Like
            all columns it is read only.
    """

    def __init__(
        self,
        objects: ReadableObjects,
        manifest: dict[str, Any],
        *,
        check_receipts: bool = False,
        check_payloads: bool = False,
    ) -> None:
        self.objects = objects
        self.location = location = objects.location
        self.manifest = manifest
        self.layout: StoreLayout = layout_of(manifest, location)
        self.fingerprint: Fingerprint = fingerprint_of(manifest, location)
        self.taps: dict[str, TapSpec] = {tap.name: tap for tap in self.layout.public}
        self.extents = self.layout.extents
        digests = digests_of(manifest, location)
        columns = read_columns(objects, self.layout, digests, complete=self.complete)
        self.uid_bytes, self._splits = columns.uids, columns.splits
        self.labels, self.groups = columns.labels, columns.groups
        self.view_columns = columns.view_columns
        self.view_parameters = columns.view_parameters
        self.projections = columns.projections
        self._outcome = columns.outcome
        if self.complete:
            require_root(manifest, location)
        receipts = None
        if check_receipts:
            require_metadata(objects, self.layout, digests.get("metadata"))
            receipts = read_receipts(objects, self.layout, digests.get("receipt"))
        self._check_receipts = check_receipts
        self._mapped = {
            tap.name: (MappedTap if tap.codec == "none" else CompressedTap)(
                objects,
                self.layout,
                tap,
                None if receipts is None else receipts[:, :, number],
                self._outcome,
                check_payloads=check_payloads,
            )
            for number, tap in enumerate(self.layout.taps)
        }
        for mapped in self._mapped.values():
            mapped.neighbours = list(self._mapped.values())

    @cached_property
    def _laid_out(self) -> dict[str, TapSpec]:
        """All taps, the scales of int8 ones included."""
        return {tap.name: tap for tap in self.layout.taps}

    @cached_property
    def uids(self) -> np.ndarray:
        """32 hexadecimal digits each, an array of str in sample order."""
        return np.frombuffer(self.uid_bytes.tobytes().hex().encode(), "S32").astype(str)

    @cached_property
    def splits(self) -> np.ndarray:
        """`train`, `val` or `test` each, an array of str in sample order."""
        return np.array(SPLITS)[self._splits]

    def samples_of(self, split: str) -> np.ndarray:
        """The numbers of the samples of a split, int64, ascending."""
        return np.flatnonzero(self._splits == SPLITS.index(split))

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
        return self.manifest.get("complete") is True

    @property
    def nbytes(self) -> int:
        """Bytes of all tap tensors before compression."""
        return self.layout.nbytes()

    @property
    def members(self) -> tuple[Store, ...]:
        """The stores that it is read from: this one, if it is not a `JointStore`."""
        return (self,)

    @property
    def where(self) -> str:
        """Where it lies, for messages."""
        return str(self.location)

    def __repr__(self) -> str:
        taps = ", ".join(self.taps)
        return f"Store({self.where!r}: {self.samples} samples, {self.views} views, {taps})"

    def array(self, tap: str) -> zarr.Array[Any]:
        """The tap's Zarr array, axes (view, sample, *tap); bfloat16 as its bits in uint16, int8 not
        yet multiplied with its scales, which are the array `<tap>.scale` beside it.

        Zarr knows nothing of receipts: where shards are to be compared with them, all are at once.
        """
        name = f"taps/{self._tap(tap).name}"
        if self._check_receipts:
            self._mapped[tap].touch_all()
        if isinstance(self.location, RemotePath):
            from rdcache.store.remote import RemoteObjects

            store = RemoteObjects(self.location).zarr_store()
            return zarr.open_array(store, path=name, mode="r", zarr_format=3)
        return zarr.open_array(self.location.as_posix(), path=name, mode="r", zarr_format=3)

    def dask(self, tap: str) -> dask.array.Array:
        """The tap as a lazy dask array, one dask chunk a shard."""
        import dask.array  # takes as long to import as all else here together

        array = self.array(tap)
        return dask.array.from_zarr(array, chunks=array.shards)

    def sample_table(self) -> SampleTable:
        """The columns of the samples, as a store is made of them."""
        return SampleTable(
            tuple(map(str, self.uids)), self.labels, tuple(map(str, self.splits)), self.groups
        )

    def available(
        self, samples: Sequence[int] | np.ndarray, views: Sequence[int] | np.ndarray | int
    ) -> np.ndarray:
        """For each (sample, view) pair, whether its tensors are stored: bool (len(samples),)."""
        return self._outcome.take(self._picks(*_asked(samples, views)).numbers) == STORED

    def outcome(self, shard: ShardRef) -> np.ndarray:
        """What became of each sample of a shard: uint8 (stop - start,)."""
        return self._outcome[shard.view, shard.start : shard.stop]

    def empty_batch(
        self, count: int, taps: Sequence[str] | None = None, *, pin: bool = False
    ) -> dict[str, torch.Tensor]:
        """Buffers for `read(…, out=…)` of `count` samples: tap name → uninitialised tensor.

        Args:
            taps: tap names; all taps by default.
            pin: in pinned memory, where there is a GPU.
        """
        specs = [self._tap(name) for name in (self.taps if taps is None else taps)]
        return {it.name: empty_tensor((count, *it.shape), read_dtype(it), pin=pin) for it in specs}

    def empty_stored_batch(
        self, count: int, taps: Sequence[str] | None = None, *, pin: bool = False
    ) -> dict[str, torch.Tensor]:
        """Buffers for `read_stored(…, out=…)`; see `empty_batch`."""
        specs = [self._laid_out[name] for name in (self._mapped if taps is None else taps)]
        return {
            it.name: empty_tensor((count, *it.shape), stored_dtype(it), pin=pin) for it in specs
        }

    def read(
        self,
        samples: Sequence[int] | np.ndarray,
        views: Sequence[int] | np.ndarray | int,
        taps: Sequence[str] | None = None,
        *,
        verify: bool = False,
        out: Buffers | None = None,
    ) -> dict[str, torch.Tensor]:
        """Read a batch.

        Args:
            samples: sample numbers, in any order, also repeated.
            views: one view for each sample, or one for all.
            taps: tap names; all taps by default.
            verify: compare every payload with its crc32c.
            out: buffers that the batch is read into and that are given back, such as those of
                `empty_batch`. They are the caller's: whoever reads into them again before the last
                batch is done with changes that batch. After an error their content is undefined.

        Returns:
            Tap name → tensor (len(samples), *tap) in the stored dtype, of int8 taps in float32
            again, in the order asked for.

        Raises:
            UsageError: a number out of range, a pair that was not extracted, or a buffer that the
                batch does not fit.
            UnknownNameError: a tap the store does not have.
            CorruptShardError: a shard that is missing, damaged, or does not match its checksum.
            StoreReadError: a shard that is there, but that the system does not let us read.
        """
        specs = self.taps.values() if taps is None else [self._tap(name) for name in taps]
        rows, sides = _asked(samples, views)
        if out is not None:
            for tap in specs:
                require_buffer(out, tap, read_dtype(tap), len(rows))
        batch = {}
        for tap in specs:
            own = None if out is None else out[tap.name]
            if (scales := tap.scales) is None:
                batch[tap.name] = self._gather(tap.name, rows, sides, verify, own)
            else:
                steps = self._gather(tap.name, rows, sides, verify)
                factors = self._gather(scales.name, rows, sides, verify)
                batch[tap.name] = dequantise(steps, factors, tap, own)
        return batch

    def read_stored(
        self,
        samples: Sequence[int] | np.ndarray,
        views: Sequence[int] | np.ndarray | int,
        taps: Sequence[str] | None = None,
        *,
        verify: bool = False,
        out: Buffers | None = None,
    ) -> dict[str, torch.Tensor]:
        """Read a batch as it lies in the store: int8 taps as int8, beside their scales.

        Args and errors are those of `read`; buffers are those of `empty_stored_batch`.
        """
        names = list(self._mapped) if taps is None else taps
        rows, sides = _asked(samples, views)
        if out is not None:
            for name in names:
                tap = self._laid_out[name]
                require_buffer(out, tap, stored_dtype(tap), len(rows))
        return {
            name: self._gather(name, rows, sides, verify, None if out is None else out[name])
            for name in names
        }

    def _gather(
        self,
        name: str,
        samples: np.ndarray,
        views: np.ndarray | int,
        verify: bool,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The tensors of one tap as they are stored; numbers are those of `_asked`."""
        tap = self._mapped[name]
        batch = None if verify else tap.at_once(samples, views, out)
        if batch is None:
            picks = self._picks(samples, views)
            self._require_stored(picks)
            batch = tap.gather(picks, verify=verify, out=out)
        return batch

    def _picks(self, samples: np.ndarray, views: np.ndarray | int) -> Picks:
        """Sample and view numbers, all within range; else a UsageError."""
        self._require_within(samples, self.samples, "sample")
        self._require_within(np.asarray(views), self.views, "view")
        return Picks(samples, views, samples + views * self.samples)

    def _require_within(self, numbers: np.ndarray, limit: int, what: str) -> None:
        outside = numbers[(numbers < 0) | (numbers >= limit)]
        if outside.size:
            raise UsageError(
                f"there is no {what} {outside[0]} in this store.",
                store=self.where,
                has=f"{limit} {what}s, counted from 0",
            )

    def _require_stored(self, picks: Picks) -> None:
        """One clear sentence about the first pair that is not there, if any."""
        outcome = self._outcome.take(picks.numbers)
        stored = outcome == STORED
        if np.count_nonzero(stored) == len(stored):
            return
        first = int(np.argmin(stored))
        view, sample = divmod(int(picks.numbers[first]), self.samples)
        if outcome[first] == NOT_FINITE:
            why = "the teacher gave NaN or Inf for it"
        elif sample >= self.extents[view]:
            covered = f"view {view} covers the first {self.extents[view]} samples only"
            why = f"{covered}, and this one is of the {self.splits[sample]} split"
        else:
            why = "its shard is missing"
        raise UsageError(
            f"sample {sample} has no tensors for view {view}: {why}.", store=self.where
        )

    def _tap(self, name: str) -> TapSpec:
        if name not in self.taps:
            raise UnknownNameError.of("tap in this store", name, self.taps)
        return self.taps[name]


def _asked(
    samples: Sequence[int] | np.ndarray, views: Sequence[int] | np.ndarray | int
) -> tuple[np.ndarray, np.ndarray | int]:
    """Sample numbers, int64 (B,), and views: as many, or one for all.

    Raises:
        UsageError: they are no whole numbers, or not as many.
    """
    if type(samples) is np.ndarray and samples.dtype is INT64 and samples.ndim == 1:
        rows = samples
    else:
        rows = _whole(samples, "sample").reshape(-1)
    if type(views) is int:
        return rows, views
    sides = _whole(views, "view")
    if sides.ndim and sides.shape != rows.shape:
        raise UsageError(f"{len(rows)} samples are asked for in {len(sides)} views.")
    return rows, sides if sides.ndim else int(sides)


def _whole(values: Sequence[int] | np.ndarray | int, what: str) -> np.ndarray:
    numbers = np.asarray(values)
    if numbers.size and numbers.dtype.kind not in "iu":
        raise UsageError(f"{what}s are asked for by whole numbers.", got=numbers.dtype)
    if numbers.dtype.kind == "u" and numbers.size and numbers.max() > np.iinfo(np.int64).max:
        raise UsageError(f"there is no {what} {numbers.max()}: no store has as many.")
    return numbers.astype(np.int64, copy=False)
