"""Writing a store: created once, filled shard by shard, committed when every receipt is there.

The order of writing is what makes a crash harmless: first a shard's objects, one a tap, each whole
or not at all; then its outcomes; its receipt last. A shard without a receipt was never written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from rdcache.errors import StaleStoreError, StoreIncompleteError, StoreNotFoundError
from rdcache.store import arrays
from rdcache.store.manifest import (
    build_manifest,
    fingerprint_of,
    group_document,
    layout_of,
    read_manifest,
)
from rdcache.store.objects import LocalObjects, write_error
from rdcache.store.reader import Store, open_store
from rdcache.store.shard import encode_shard
from rdcache.store.spec import Fingerprint, SampleTable, ShardRef, StoreLayout, TapSpec

STORED = 1
NOT_FINITE = 2


def create_store(
    location: Path,
    layout: StoreLayout,
    fingerprint: Fingerprint,
    samples: SampleTable,
    view_parameters: np.ndarray,
    view_columns: Sequence[str],
    facts: Mapping[str, Any],
) -> StoreWriter:
    """Create a store, or reopen an incomplete one of the same fingerprint as it was laid out.

    Args:
        location: the folder that is, or becomes, the Zarr group.
        view_parameters: float64 (views, samples, columns).
        facts: further entries of the manifest, JSON values.

    Raises:
        StaleStoreError: a store of another fingerprint lies there.
        StoreWriteError: the folder cannot be written.
    """
    objects = LocalObjects(location)
    try:
        manifest = read_manifest(location)
    except StoreNotFoundError:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        manifest = build_manifest(layout, fingerprint, created, facts)
        _create_arrays(location, layout, samples, view_parameters, view_columns)
        # The group's document makes it a store; whatever dies before leaves nothing that counts.
        objects.put("zarr.json", group_document(manifest))
        return StoreWriter(location, manifest)
    there = fingerprint_of(manifest, location)
    if there != fingerprint:
        raise StaleStoreError(
            "a store of another fingerprint lies here.",
            store=location,
            differs_in=", ".join(there.differences(fingerprint)),
        )
    objects.clean()
    return StoreWriter(location, manifest)


class StoreWriter:
    """Fills one store. Only one writer may work on a shard.

    Attributes:
        layout: as the store was laid out; its taps may have other dtypes than were asked for now.
    """

    def __init__(self, location: Path, manifest: dict[str, Any]) -> None:
        self.location = location
        self.manifest = manifest
        self.layout = layout_of(manifest, location)
        self.objects = LocalObjects(location)

    def missing(self) -> list[ShardRef]:
        """Shards without a receipt, in the order of writing."""
        receipts = self.objects.names("receipt/c")
        return [s for s in self.layout.shards() if arrays.receipt_object(s) not in receipts]

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
        digests = [
            self._write_tap(tap, shard, tensors[tap.name], outcome == STORED)
            for tap in self.layout.taps
        ]
        padded = np.zeros(self.layout.shard_samples, np.uint8)
        padded[: len(outcome)] = outcome
        self.objects.put(arrays.outcome_object(shard), padded.tobytes())
        self.objects.put(arrays.receipt_object(shard), b"".join(digests))

    def _write_tap(
        self, tap: TapSpec, shard: ShardRef, rows: np.ndarray, present: np.ndarray
    ) -> bytes:
        """Write one object and return its sha256."""
        expected = np.dtype("uint16" if tap.dtype == "bfloat16" else tap.dtype)
        if rows.shape != (shard.stop - shard.start, *tap.shape) or rows.dtype != expected:
            raise ValueError(f"{tap.name}: got {rows.dtype} {rows.shape} for {shard}")
        pieces = encode_shard(
            rows.astype(expected.newbyteorder("<"), copy=False), present, self.layout.shard_samples
        )
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        self.objects.put(arrays.tap_object(tap, shard), *pieces)
        return digest.digest()

    def restart_with(self, taps: Sequence[TapSpec]) -> StoreWriter:
        """Begin anew with other dtypes of the same taps: forget every shard.

        The receipts go first, so that a crash in between leaves shards that do not count.
        """
        self.objects.delete(sorted(self.objects.names("receipt/c")))
        for tap in self.layout.taps:
            self.objects.delete(sorted(self.objects.names(f"taps/{tap.name}/c")))
        layout = replace(self.layout, taps=tuple(taps))
        manifest = {**self.manifest, "taps": [tap.to_dict() for tap in taps]}
        for tap in taps:
            arrays.create_tap_array(self.location, layout, tap)
        self.objects.put("zarr.json", group_document(manifest))
        return StoreWriter(self.location, manifest)

    def commit(self, facts: Mapping[str, Any]) -> Store:
        """Declare the store complete, with the last facts of its manifest.

        Raises:
            StoreIncompleteError: shards are missing.
        """
        missing = self.missing()
        if missing:
            raise incomplete_error(self.location, len(missing), len(self.layout.shards()))
        manifest = {**self.manifest, **facts, "complete": True}
        self.objects.put("zarr.json", group_document(manifest))
        return open_store(self.location)


def incomplete_error(location: Path, missing: int, total: int) -> StoreIncompleteError:
    """Say how much of a store is there and how to go on."""
    return StoreIncompleteError(
        f"this store is incomplete: {total - missing} of {total} shards are there.",
        store=location,
        next="run the `rdcache extract` that makes it again; it goes on where it stopped",
    )


def _create_arrays(
    location: Path,
    layout: StoreLayout,
    samples: SampleTable,
    view_parameters: np.ndarray,
    view_columns: Sequence[str],
) -> None:
    try:
        location.mkdir(parents=True, exist_ok=True)
        for tap in layout.taps:
            arrays.create_tap_array(location, layout, tap)
        arrays.create_progress_arrays(location, layout)
        columns = samples.columns()
        for name, values in columns.items():
            dimensions = ("sample", "byte")[: values.ndim]
            attributes = arrays.split_attributes() if name == "split" else None
            arrays.create_plain_array(location, name, values, dimensions, attributes)
        arrays.create_plain_array(
            location,
            "view",
            np.asarray(view_parameters, np.float64),
            ("view", "sample", "parameter"),
            {"columns": list(view_columns)},
        )
    except OSError as error:
        raise write_error(location, error) from error
