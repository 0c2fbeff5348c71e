"""Beginning a store, or going on with one that lies there already."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from typing import Any

import numpy as np

from rdcache.errors import (
    StaleStoreError,
    StoreFormatError,
    StoreIncompleteError,
    StoreNotFoundError,
    UsageError,
)
from rdcache.store import arrays
from rdcache.store.claims import Worker
from rdcache.store.locations import Location
from rdcache.store.manifest import (
    build_manifest,
    fingerprint_of,
    group_document,
    layout_of,
    read_manifest,
)
from rdcache.store.objects import Objects, objects_at
from rdcache.store.opening import open_directly
from rdcache.store.projection import Projection
from rdcache.store.reader import Store
from rdcache.store.spec import (
    Fingerprint,
    SampleTable,
    StoreLayout,
)
from rdcache.store.writer import StoreWriter, without_dtypes


@dataclass(frozen=True)
class StoreContent:
    """A store that has not been written yet, shards aside.

    Attributes:
        view_parameters: float64 (views, samples, columns).
        facts: further entries of the manifest, JSON values.
        projections: of the taps with fewer channels than the teacher's.
    """

    layout: StoreLayout
    fingerprint: Fingerprint
    samples: SampleTable
    view_parameters: np.ndarray
    view_columns: Sequence[str]
    facts: Mapping[str, Any]
    projections: Mapping[str, Projection] = field(default_factory=dict)


def finished_store(location: Location) -> Store | None:
    """The store that lies here, if it is complete and every shard has its length."""
    try:
        store = open_directly(location)
    except (StoreNotFoundError, StoreIncompleteError):
        return None
    return None if StoreWriter(location, store.manifest).missing() else store


def create_store(
    location: Location, content: StoreContent, worker: Worker | None = None
) -> StoreWriter:
    """Create a store, or reopen one of the same fingerprint as it was laid out, to fill it.

    Args:
        location: the folder that is, or becomes, the Zarr group.
        content: a store that is there keeps its own dtypes and projections.
        worker: who writes, where several may; without one the caller is the only writer.

    Raises:
        StaleStoreError: a store of another fingerprint, or of other samples, lies there.
        UsageError: a Zarr group that is no store of ours lies there.
        StoreWriteError: the folder cannot be written.
    """
    writer_of = partial(StoreWriter, location, worker=worker)
    objects = objects_at(location)
    try:
        manifest = read_manifest(location)
    except StoreNotFoundError:
        if objects.exists("zarr.json"):
            raise UsageError(
                "a Zarr group that is no rdcache store lies here.",
                found=location,
                next="choose another --root",
            ) from None
        created = datetime.now(UTC).isoformat(timespec="milliseconds")
        columns = _columns(content)
        digests = {name: sha256(data).hexdigest() for name, (_, data) in columns.items()}
        manifest = build_manifest(
            content.layout, content.fingerprint, created, digests, content.facts
        )
        _begin(objects, content, manifest, columns)
        return writer_of(manifest)
    _require_same(location, manifest, content)
    writer = writer_of(manifest)
    if manifest.get("complete") is True and writer.missing():
        writer.reopen()
    if writer.manifest["complete"] is not True:
        writer.objects.clean(worker.alive if worker else lambda token: False)
        writer.write_tap_documents()
    return writer


def _begin(
    objects: Objects,
    content: StoreContent,
    manifest: Mapping[str, Any],
    columns: Mapping[str, tuple[str, bytes]],
) -> None:
    """Write everything but the shards. The group's document comes last and makes it a store;
    whatever dies before leaves nothing that counts.
    """
    group = group_document(manifest)
    objects.clean()
    objects.delete(sorted(objects.sizes("receipt/c")))
    documents = arrays.all_documents(content.layout, content.view_columns)
    for name, data in [*documents.items(), *columns.values()]:
        objects.put(name, data)
    objects.put("zarr.json", group)


def _columns(content: StoreContent) -> dict[str, tuple[str, bytes]]:
    """The arrays that are one chunk each: name → (name of the chunk, its bytes)."""
    layout, samples, view_columns = content.layout, content.samples, content.view_columns
    parameters = np.ascontiguousarray(content.view_parameters, np.float64)
    expected = (layout.views, layout.samples, len(view_columns))
    if parameters.shape != expected or not view_columns or len(samples.uids) != layout.samples:
        raise StoreFormatError(
            "samples or view parameters do not fit the layout.",
            layout=f"{layout.views} views of {layout.samples} samples",
            got=f"{len(samples.uids)} samples, view parameters {parameters.shape}",
        )
    values = {**samples.columns(), "view": parameters}
    for tap, projection in content.projections.items():
        values[f"taps/{tap}.basis"] = projection.basis.numpy()
        values[f"taps/{tap}.mean"] = projection.mean.numpy()
    chunks = {}
    for name, document in arrays.column_documents(layout, view_columns).items():
        if name not in values or list(values[name].shape) != document["shape"]:
            what = "a projection" if name.startswith("taps/") else "a column of the samples"
            raise StoreFormatError(f"{what} does not fit the layout.", array=name)
        little = values[name].astype(np.dtype(document["data_type"]).newbyteorder("<"))
        chunks[name] = (arrays.column_object(document, name), little.tobytes())
    return chunks


def _require_same(location: Location, manifest: Mapping[str, Any], content: StoreContent) -> None:
    """Refuse to go on with a store that is not the one that is asked for."""
    there = fingerprint_of(manifest, location)
    if there != content.fingerprint:
        raise StaleStoreError(
            "a store of another fingerprint lies here.",
            store=location,
            differs_in=", ".join(there.differences(content.fingerprint)),
        )
    laid_out = layout_of(manifest, location)
    if laid_out.shard_samples > 2 * laid_out.samples:
        raise StoreFormatError(
            "the shards of the store that lies here are absurdly large.",
            store=location,
            shard=f"{laid_out.shard_samples} samples, of {laid_out.samples} in all",
        )
    if without_dtypes(laid_out) != without_dtypes(content.layout):
        raise StaleStoreError(
            "a store of other samples, views or taps lies here under the same fingerprint.",
            store=location,
        )
