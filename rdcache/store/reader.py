"""Opening a store, and reading batches of cached tensors from it.

A batch is gathered straight from the mapped shards (`gather.py`, or `gather_compressed.py`), so
nothing here depends on zarr-python's speed; `Store.array` is the plain Zarr route, which gives the
same bits.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import zarr

from rdcache.errors import StoreIncompleteError, UnknownNameError, UsageError
from rdcache.store.columns import read_columns, read_receipts, require_metadata
from rdcache.store.gather import MappedTap
from rdcache.store.gather_compressed import CompressedTap
from rdcache.store.locations import Location, RemotePath, as_location
from rdcache.store.manifest import (
    digests_of,
    fingerprint_of,
    layout_of,
    read_manifest,
    require_root,
)
from rdcache.store.objects import ReadableObjects, objects_at
from rdcache.store.quantisation import dequantise, with_scales
from rdcache.store.signatures import require_signed
from rdcache.store.spec import (
    NOT_FINITE,
    STORED,
    Fingerprint,
    SampleTable,
    ShardRef,
    StoreLayout,
    TapSpec,
)

if TYPE_CHECKING:
    import dask.array


def open_store(
    location: str | os.PathLike[str] | RemotePath,
    *,
    allow_incomplete: bool = False,
    require_signature: str | Path | None = None,
) -> Store:
    """Open a store for reading, in a folder or a bucket; see `cached_objects.py` for the latter.

    Args:
        location: a folder, or an address such as `s3://team/rdcache/isic/pmc-clip/0123456789ab`.
        allow_incomplete: open one whose extraction has not finished, for a look at it.
        require_signature: PEM file of a public key. A store that is not signed by it is refused,
            and every shard is compared with what was signed when it is first touched.

    Raises:
        StoreNotFoundError: no store lies there.
        StoreFormatError: another schema, or arrays that contradict the manifest.
        StoreIncompleteError: its extraction has not finished.
        SignatureError: it is not signed as asked for.
        BucketError: the bucket does not answer.
    """
    place = as_location(location)
    if not isinstance(place, RemotePath):
        return open_directly(
            place, allow_incomplete=allow_incomplete, require_signature=require_signature
        )
    objects, manifest = _through_the_cache(place)
    return _open(objects, manifest, allow_incomplete, require_signature)


def open_directly(
    location: Location,
    *,
    allow_incomplete: bool = False,
    require_signature: str | Path | None = None,
) -> Store:
    """Open a store without the download cache, for a look or to copy it: of what is read from a
    bucket hardly anything is kept, so that batches in random order should not be.

    Args and errors are those of `open_store`.
    """
    objects, manifest = objects_at(location), read_manifest(location)
    return _open(objects, manifest, allow_incomplete, require_signature)


def _open(
    objects: ReadableObjects,
    manifest: dict[str, Any],
    allow_incomplete: bool,
    require_signature: str | Path | None,
) -> Store:
    place = objects.location
    # Of a store under way nothing else is looked at: a crash may have left its arrays between two
    # versions, which the next extraction puts right.
    if manifest.get("complete") is not True and not allow_incomplete:
        total = layout_of(manifest, place).shard_count
        raise incomplete_error(place, min(len(objects.sizes("receipt/c")), total), total)
    if require_signature is None:
        return Store(objects, manifest)
    require_signed(manifest, place, Path(require_signature))
    return Store(objects, manifest, check_shards=True)


def _through_the_cache(location: RemotePath) -> tuple[ReadableObjects, dict[str, Any]]:
    """Objects and manifest of a store in a bucket; one that is not complete is not kept."""
    objects = objects_at(location)
    # They need obstore, as `objects_at` has found out.
    from rdcache.store.cached_objects import open_cached, remembered_manifest
    from rdcache.store.download_cache import DownloadCache

    cache = DownloadCache.of_environment()
    manifest = remembered_manifest(location, cache)
    if manifest.get("complete") is not True:
        return objects, manifest
    return open_cached(location, manifest, cache), manifest


def incomplete_error(location: Location, there: int, total: int) -> StoreIncompleteError:
    """Say how much of a store is there and how to go on."""
    return StoreIncompleteError(
        f"this store is incomplete: {there} of {total} shards are there.",
        store=location,
        next="run the `rdcache extract` that makes it again; it goes on where it stopped",
    )


class Store:
    """A store that is open for reading. Safe to pickle: files are mapped anew in each process. Safe
    to use after a fork, too, if it lies in a folder; see `RemoteObjects` for buckets.

    Args:
        check_shards: compare each shard with its receipt when it is first touched.

    Attributes:
        location: its folder, or its address in a bucket.
        objects: what it is read through.
        manifest: its description of itself, a dictionary of JSON values.
        fingerprint: what decided its numbers.
        taps: tap name → `TapSpec`; the scales of int8 taps are not among them.
        projections: tap name → `Projection`, of taps with fewer channels than the teacher's.
        extents: for each view, how many leading samples it covers.
        uids, splits: arrays of str in sample order.
        labels, groups: int64 arrays in sample order; group -1 is none.
        view_parameters: float64 (views, samples, columns); `view_columns` names the columns.
    """

    def __init__(
        self, objects: ReadableObjects, manifest: dict[str, Any], *, check_shards: bool = False
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
        self.uids, self.splits = columns.uids, columns.splits
        self.labels, self.groups = columns.labels, columns.groups
        self.view_columns = columns.view_columns
        self.view_parameters = columns.view_parameters
        self.projections = columns.projections
        self._outcome = columns.outcome
        if self.complete:
            require_root(manifest, location)
        receipts = None
        if check_shards:
            require_metadata(objects, self.layout, digests.get("metadata"))
            receipts = read_receipts(objects, self.layout, digests.get("receipt"))
        self._check_shards = check_shards
        self._mapped = {
            tap.name: (MappedTap if tap.codec == "none" else CompressedTap)(
                objects, self.layout, tap, None if receipts is None else receipts[:, :, number]
            )
            for number, tap in enumerate(self.layout.taps)
        }
        for mapped in self._mapped.values():
            mapped.neighbours = list(self._mapped.values())

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

    def __repr__(self) -> str:
        taps = ", ".join(self.taps)
        return f"Store({str(self.location)!r}: {self.samples} samples, {self.views} views, {taps})"

    def array(self, tap: str) -> zarr.Array[Any]:
        """The tap's Zarr array, axes (view, sample, *tap); bfloat16 as its bits in uint16, int8 not
        yet multiplied with its scales, which are the array `<tap>.scale` beside it.

        Zarr knows nothing of receipts: where shards are to be compared with them, all are at once.
        """
        name = f"taps/{self._tap(tap).name}"
        if self._check_shards:
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

    def available(self, samples: Sequence[int], views: Sequence[int] | int) -> np.ndarray:
        """For each (sample, view) pair, whether its tensors are stored: bool (len(samples),)."""
        rows, sides = self._pairs(samples, views)
        return np.asarray(self._outcome[sides, rows] == STORED)

    def outcome(self, shard: ShardRef) -> np.ndarray:
        """What became of each sample of a shard: uint8 (stop - start,)."""
        return self._outcome[shard.view, shard.start : shard.stop]

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
            Tap name → tensor (len(samples), *tap) in the stored dtype, of int8 taps in float32
            again, in the order asked for.

        Raises:
            UsageError: a number out of range, or a pair that was not extracted.
            UnknownNameError: a tap the store does not have.
            CorruptShardError: a shard that is missing, damaged, or does not match its checksum.
        """
        specs = [self._tap(name) for name in (self.taps if taps is None else taps)]
        needed = [tap.name for tap in with_scales(specs)]
        stored = self.read_stored(samples, views, needed, verify=verify)
        return {
            tap.name: stored[tap.name]
            if tap.scales is None
            else dequantise(stored[tap.name], stored[tap.scales.name], tap)
            for tap in specs
        }

    def read_stored(
        self,
        samples: Sequence[int],
        views: Sequence[int] | int,
        taps: Sequence[str] | None = None,
        *,
        verify: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Read a batch as it lies in the store: int8 taps as int8, beside their scales.

        Args and errors are those of `read`.
        """
        names = list(self._mapped) if taps is None else taps
        rows, sides = self._pairs(samples, views)
        self._require_stored(rows, sides)
        return {name: self._mapped[name].gather(rows, sides, verify=verify) for name in names}

    def _pairs(
        self, samples: Sequence[int], views: Sequence[int] | int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sample and view numbers as int64 arrays of one length, all within range."""
        rows = self._numbers(samples, self.samples, "sample").reshape(-1)
        sides = self._numbers(views, self.views, "view")
        if sides.ndim and sides.shape != rows.shape:
            raise UsageError(f"{len(rows)} samples are asked for in {len(sides)} views.")
        return rows, np.broadcast_to(sides, rows.shape)

    def _numbers(self, values: Sequence[int] | int, limit: int, what: str) -> np.ndarray:
        numbers = np.asarray(values)
        if numbers.size and numbers.dtype.kind not in "iu":
            raise UsageError(f"{what}s are asked for by whole numbers.", got=numbers.dtype)
        outside = numbers[(numbers < 0) | (numbers >= limit)]
        if outside.size:
            raise UsageError(
                f"there is no {what} {outside[0]} in this store.",
                store=self.location,
                has=f"{limit} {what}s, counted from 0",
            )
        return numbers.astype(np.int64)

    def _require_stored(self, rows: np.ndarray, sides: np.ndarray) -> None:
        """One clear sentence about the first pair that is not there, if any."""
        outcome = self._outcome[sides, rows]
        if (outcome == STORED).all():
            return
        first = int(np.argmax(outcome != STORED))
        sample, view = int(rows[first]), int(sides[first])
        if outcome[first] == NOT_FINITE:
            why = "the teacher gave NaN or Inf for it"
        elif sample >= self.extents[view]:
            covered = f"view {view} covers the first {self.extents[view]} samples only"
            why = f"{covered}, and this one is of the {self.splits[sample]} split"
        else:
            why = "its shard is missing"
        raise UsageError(
            f"sample {sample} has no tensors for view {view}: {why}.", store=self.location
        )

    def _tap(self, name: str) -> TapSpec:
        if name not in self.taps:
            raise UnknownNameError.of("tap in this store", name, self.taps)
        return self.taps[name]
