"""Writing a store: created once, filled shard by shard, committed when every receipt is there.

The order of writing is what makes a crash harmless: first a shard's objects, one a tap, and its
outcomes, each whole or not at all; its receipt last. A shard without a receipt was never written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from hashlib import sha256
from typing import Any

import numpy as np

from rdcache.errors import (
    StaleStoreError,
    StoreFormatError,
)
from rdcache.store import arrays
from rdcache.store.claims import Worker
from rdcache.store.columns import metadata_digest, read_projections
from rdcache.store.compression import compress
from rdcache.store.locations import Location, RemotePath
from rdcache.store.manifest import (
    complete_manifest,
    digests_of,
    group_document,
    layout_of,
    read_manifest,
    unfinished_manifest,
)
from rdcache.store.objects import objects_at
from rdcache.store.opening import incomplete_error, open_directly
from rdcache.store.projection import Projection
from rdcache.store.reader import Store
from rdcache.store.shard import encode_shard, index_bytes, is_whole, shard_bytes
from rdcache.store.spec import (
    NOT_FINITE,
    STORED,
    ShardRef,
    StoreLayout,
    TapSpec,
)

OBJECTS_AT_ONCE = 4  # of one shard; syncs that wait for the disk at the same time share its flush
TAILS_AT_ONCE = 16


class StoreWriter:
    """Fills one store. Only one writer may work on a shard; `claims.py` sees to that where there
    are several.

    Attributes:
        layout: as the store was laid out; its taps may have other dtypes than were asked for now.
    """

    def __init__(
        self, location: Location, manifest: dict[str, Any], worker: Worker | None = None
    ) -> None:
        self.location = location
        self.manifest = manifest
        self.worker = worker
        self.layout = layout_of(manifest, location)
        self.objects = objects_at(location, worker.token if worker else None)

    @cached_property
    def projections(self) -> dict[str, Projection]:
        """Of the taps with fewer channels than the teacher's, as they were stored at the beginning:
        the same for everybody who writes.

        Raises:
            StoreFormatError: they are missing or damaged.
        """
        return read_projections(self.objects, self.layout, digests_of(self.manifest, self.location))

    def missing(self) -> list[ShardRef]:
        """Shards without a receipt, or with an object that is gone or of another length, in the
        order of writing.
        """
        sizes = self.objects.sizes("")
        shards = self.layout.shards()
        begun = [shard for shard in shards if arrays.receipt_object(shard) in sizes]
        outcomes = self.objects.read_all([arrays.outcome_object(shard) for shard in begun])
        packed = any(tap.codec != "none" for tap in self.layout.taps)
        # Of compressed shards the tails are read, and a bucket takes its time for each.
        in_bucket = isinstance(self.location, RemotePath)
        with ThreadPoolExecutor(
            TAILS_AT_ONCE if packed and in_bucket else 1, thread_name_prefix="tails"
        ) as pool:
            found = pool.map(lambda shard, it: self._whole(shard, it, sizes.get), begun, outcomes)
            there = {shard for shard, whole in zip(begun, found, strict=True) if whole}
        return [shard for shard in shards if shard not in there]

    def lacks(self, shard: ShardRef) -> bool:
        """Whether one shard is missing."""
        outcome = self.objects.read(arrays.outcome_object(shard))
        return not (
            self.objects.exists(arrays.receipt_object(shard))
            and self._whole(shard, outcome, self.objects.size)
        )

    def renewed(self) -> StoreWriter:
        """This writer if the layout is still what it was, else one for what it has become."""
        manifest = read_manifest(self.location)
        if layout_of(manifest, self.location) == self.layout:
            return self
        return StoreWriter(self.location, manifest, self.worker)

    def _whole(
        self, shard: ShardRef, outcome: bytes | None, size_of: Callable[[str], int | None]
    ) -> bool:
        """Whether all objects of a shard have the length that they must have."""
        if outcome is None or len(outcome) != self.layout.shard_samples:
            return False
        present = outcome.count(STORED)
        return all(self._has_length(tap, shard, present, size_of) for tap in self.layout.taps)

    def _has_length(
        self, tap: TapSpec, ref: ShardRef, present: int, size_of: Callable[[str], int | None]
    ) -> bool:
        """Whether one object is as long as its samples, or its own index, make it."""
        name, chunks = arrays.tap_object(tap, ref.view, ref.index), self.layout.shard_samples
        size = size_of(name)
        if tap.codec == "none" or size is None:
            return size == shard_bytes(tap.nbytes, present, chunks)
        tail = self.objects.tail(name, size, index_bytes(chunks))
        return tail is not None and is_whole(tail, size, present)

    def write(
        self, shard: ShardRef, tensors: Mapping[str, np.ndarray], outcome: np.ndarray
    ) -> None:
        """Write one shard of every tap, then its receipt.

        Args:
            tensors: tap name → (stop - start, *tap) in the stored dtype; bfloat16 as its bits in
                uint16.
            outcome: uint8 (stop - start,): 1 for a sample to store, 2 for one with NaN or Inf,
                whose chunk is left absent.

        Raises:
            StoreWriteError: nothing of this shard counts as written; the others are untouched.
        """
        present = self._checked(shard, tensors, outcome)
        if self.objects.exists(arrays.receipt_object(shard)):
            self.forget([shard])  # it would vouch for a shard of which only a part is new
        with ThreadPoolExecutor(OBJECTS_AT_ONCE, thread_name_prefix="write") as pool:
            noted = pool.submit(self._put_outcome, shard, outcome)
            digests = list(
                pool.map(
                    lambda tap: self._write_tap(tap, shard, tensors[tap.name], present),
                    self.layout.taps,
                )
            )
            noted.result()
        self._put_receipt(shard, digests)

    def write_if_lacking(
        self, shard: ShardRef, tensors: Mapping[str, np.ndarray], outcome: np.ndarray
    ) -> bool:
        """Write a shard, unless another has done so since it was begun.

        Computing takes a while, in which this process may have been given up for dead, or a tap
        may have got another dtype.

        Returns:
            False if the layout is no longer this writer's; nothing of the shard counts then.
        """
        if self.renewed() is not self:
            return False
        if self.lacks(shard):
            self.write(shard, tensors, outcome)
        if self.renewed() is self:
            return True
        self.forget([shard])
        return False

    def finish(self, shard: ShardRef, outcome: np.ndarray, digests: Sequence[bytes]) -> None:
        """Declare a shard written, whose objects are there already.

        Args:
            outcome: uint8 (stop - start,).
            digests: the sha256 of each tap's object.
        """
        self._put_outcome(shard, outcome)
        self._put_receipt(shard, digests)

    def _put_outcome(self, shard: ShardRef, outcome: np.ndarray) -> None:
        padded = np.zeros(self.layout.shard_samples, np.uint8)
        padded[: len(outcome)] = outcome
        self.objects.put(arrays.outcome_object(shard), padded.tobytes())

    def _put_receipt(self, shard: ShardRef, digests: Sequence[bytes]) -> None:
        self.objects.put(arrays.receipt_object(shard), b"".join(digests))

    def _checked(
        self, shard: ShardRef, tensors: Mapping[str, np.ndarray], outcome: np.ndarray
    ) -> np.ndarray:
        """Refuse what does not belong to the layout before a byte is written; mark the rows that
        are there to store.
        """
        if shard != self.layout.shard(shard.view, shard.index) or shard.start >= shard.stop:
            raise StoreFormatError("this shard is not of this store.", shard=shard)
        count = shard.stop - shard.start
        for tap in self.layout.taps:
            rows = tensors[tap.name]
            if rows.shape != (count, *tap.shape) or rows.dtype != tap.stored_dtype:
                raise StoreFormatError(
                    "these tensors are not what the tap declares.",
                    tap=tap.name,
                    declared=f"{tap.stored_dtype} {(count, *tap.shape)}",
                    got=f"{rows.dtype} {rows.shape}",
                )
        if outcome.shape != (count,) or not np.isin(outcome, (STORED, NOT_FINITE)).all():
            raise StoreFormatError("each sample of a shard needs an outcome of 1 or 2.")
        return np.asarray(outcome == STORED)

    def _write_tap(
        self, tap: TapSpec, shard: ShardRef, rows: np.ndarray, present: np.ndarray
    ) -> bytes:
        """Write one object and return its sha256, which takes as long as the disk does: both are
        at work at once.
        """
        little = rows.astype(tap.stored_dtype.newbyteorder("<"), copy=False)
        packing = None if tap.codec == "none" else partial(compress, tap)
        pieces = encode_shard(little, present, self.layout.shard_samples, packing)
        with ThreadPoolExecutor(1, thread_name_prefix="digest") as beside:
            digest = beside.submit(_digest, pieces)
            self.objects.put(arrays.tap_object(tap, shard.view, shard.index), *pieces)
            return digest.result()

    def write_tap_documents(self) -> None:
        """Make the taps' metadata follow the manifest, whatever a crash left of it."""
        for tap in self.layout.taps:
            document = arrays.tap_document(self.layout, tap)
            self.objects.put(f"taps/{tap.name}/zarr.json", arrays.encode(document))

    def restart_with(self, taps: Sequence[TapSpec]) -> StoreWriter:
        """Begin anew with other dtypes of the same taps: forget every shard.

        The receipts go first and the manifest second: a crash in between leaves shards that do
        not count, and `create_store` makes the rest follow the manifest.

        Raises:
            StaleStoreError: these are not the same taps.
        """
        layout = replace(self.layout, taps=tuple(taps))
        if without_dtypes(layout) != without_dtypes(self.layout):
            raise StaleStoreError("only the dtype of a tap may change.", store=self.location)
        self.objects.delete(sorted(self.objects.sizes("receipt/c")))
        manifest = {**self.manifest, "taps": [tap.to_dict() for tap in taps]}
        self.objects.put("zarr.json", group_document(manifest))
        for name in ("outcome", *(f"taps/{tap.name}" for tap in taps)):
            self.objects.delete(sorted(self.objects.sizes(f"{name}/c")))
        writer = StoreWriter(self.location, manifest, self.worker)
        writer.write_tap_documents()
        return writer

    def reopen(self) -> None:
        """Declare a complete store unfinished, so that what is mended is committed anew: another
        machine may give other last bits, and with them other digests.
        """
        self.manifest = unfinished_manifest(self.manifest)
        self.objects.put("zarr.json", group_document(self.manifest))

    def forget(self, shards: Iterable[ShardRef]) -> None:
        """Have shards written again, whatever lies there."""
        self.objects.delete(sorted(arrays.receipt_object(shard) for shard in shards))

    def commit(self, facts: Mapping[str, Any], manifest: Mapping[str, Any] | None = None) -> Store:
        """Declare the store complete, with the last facts of its manifest.

        Args:
            manifest: of the finished store, where there is one already: it stays as it is, with
                its time, its root and whatever is signed.

        Raises:
            StoreIncompleteError: shards are missing.
            StaleStoreError: what lies here is not what the given manifest says.
        """
        missing, total = len(self.missing()), len(self.layout.shards())
        if missing:
            raise incomplete_error(self.location, total - missing, total)
        self.write_tap_documents()
        finished = complete_manifest(self.manifest, self._digests(), facts)
        if manifest is not None and manifest["digests"] != finished["digests"]:
            raise StaleStoreError(
                "another process has written other numbers into this store meanwhile.",
                store=self.location,
                next="run the same command again",
            )
        self.manifest = finished if manifest is None else dict(manifest)
        # A writer that was killed may have left folders that no later one took for new.
        self.objects.sync()
        self.objects.put("zarr.json", group_document(self.manifest))
        return open_directly(self.location)

    def _digests(self) -> dict[str, str]:
        """The sha256 of all chunks of `outcome` and `receipt`, in the order of writing, and of the
        arrays' metadata.
        """
        outcome, receipt = sha256(), sha256()
        shards = self.layout.shards()
        for chunk in self.objects.read_all([arrays.outcome_object(shard) for shard in shards]):
            outcome.update(chunk or b"")
        for chunk in self.objects.read_all([arrays.receipt_object(shard) for shard in shards]):
            receipt.update(chunk or b"")
        return {
            "outcome": outcome.hexdigest(),
            "receipt": receipt.hexdigest(),
            "metadata": metadata_digest(self.objects, self.layout),
        }


def _digest(pieces: Iterable[bytes | memoryview]) -> bytes:
    """The sha256 of pieces, one after the other."""
    digest = sha256()
    for piece in pieces:
        digest.update(piece)
    return digest.digest()


def without_dtypes(layout: StoreLayout) -> StoreLayout:
    """What may not change in a store. Its taps' codecs and float dtypes and its shard size are its
    own affair.
    """
    taps = tuple(
        replace(tap, codec="none", dtype="int8" if tap.dtype == "int8" else "float32")
        for tap in layout.taps
    )
    return replace(layout, taps=taps, shard_samples=1)
