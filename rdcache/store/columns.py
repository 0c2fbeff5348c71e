"""The small arrays of a store, and the proof that its arrays are what its manifest says.

Nothing is read before its length on disk is what the manifest makes it, so that a damaged or
hostile manifest cannot make us allocate more than the store holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rdcache.errors import StoreFormatError
from rdcache.store import arrays
from rdcache.store.manifest import AGAIN
from rdcache.store.objects import Objects, ReadableObjects
from rdcache.store.projection import Projection
from rdcache.store.spec import SPLITS, StoreLayout

DOCUMENT_BYTES = 2**20  # no metadata of an array is longer
LISTED_SHARDS = 10_000  # so many are listed without a question
WORTH_MAPPING = 2**20  # bytes of view parameters; of less a copy is as good


@dataclass(frozen=True)
class Columns:
    """What a store knows about its samples and views, in sample order; all arrays read only.

    Attributes:
        uids: uint8 (N, 16).
        labels: int64 (N,), multi-label (N, L).
        groups: int64 (N,).
        splits: int8 (N,), positions in SPLITS.
        view_parameters: float64 (V, N, P).
        outcome: uint8 (V, N): 0 not extracted, 1 stored, 2 not finite.
        projections: of the taps that have fewer channels than the teacher's.
    """

    uids: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    groups: np.ndarray
    view_columns: tuple[str, ...]
    view_parameters: np.ndarray
    outcome: np.ndarray
    projections: dict[str, Projection]


def read_columns(
    objects: ReadableObjects, layout: StoreLayout, digests: Mapping[str, str], *, complete: bool
) -> Columns:
    """Compare every array's metadata with the manifest, then read the small arrays.

    Args:
        digests: sha256 of each small array, as the manifest states them.
        complete: whether the store is committed; otherwise only shards with a receipt count.

    Raises:
        StoreFormatError: an array is missing, or contradicts the manifest.
    """
    view_columns = read_view_columns(objects)
    documents = arrays.column_documents(layout, view_columns)
    expected = {
        **documents,
        **arrays.progress_documents(layout),
        **{f"taps/{tap.name}": arrays.tap_document(layout, tap) for tap in layout.taps},
    }
    for name, document in expected.items():
        if not arrays.agree(_document(objects, name), document):
            raise _contradiction(objects, name, document)
    columns = {
        name: _column(objects, name, document, digests.get(name))
        for name, document in documents.items()
        if not name.startswith("taps/")
    }
    if not 0 <= columns["split"].min() <= columns["split"].max() < len(SPLITS):
        raise StoreFormatError("a sample is of no known split.", store=objects.location)
    if layout.findings and not np.isin(columns["label"], (0, 1)).all():
        raise StoreFormatError("a finding is 0 or 1.", store=objects.location)
    return Columns(
        uids=columns["uid"],
        labels=columns["label"],
        splits=columns["split"],
        groups=columns["group"],
        view_columns=view_columns,
        view_parameters=columns["view"],
        outcome=_read_outcome(objects, layout, digests.get("outcome"), complete=complete),
        projections=read_projections(objects, layout, digests),
    )


def read_projections(
    objects: ReadableObjects, layout: StoreLayout, digests: Mapping[str, str]
) -> dict[str, Projection]:
    """Mean and basis of each tap with fewer channels than the teacher's.

    Raises:
        StoreFormatError: they are missing, or do not match their digests.
    """
    columns = {
        # Copied, because nothing keeps tensors from being written to.
        name: torch.from_numpy(_column(objects, name, document, digests.get(name)).copy())
        for name, document in arrays.projection_documents(layout).items()
    }
    return {
        tap.name: Projection(columns[f"taps/{tap.name}.mean"], columns[f"taps/{tap.name}.basis"])
        for tap in layout.taps
        if tap.projected_from is not None
    }


def _read_outcome(
    objects: ReadableObjects, layout: StoreLayout, digest: str | None, *, complete: bool
) -> np.ndarray:
    """What became of each sample: all shards of a complete store, else those with a receipt."""
    outcome = np.zeros((layout.views, layout.samples), np.uint8)
    receipts = {} if complete else objects.sizes("receipt/c")
    shards = [it for it in layout.shards() if complete or arrays.receipt_object(it) in receipts]
    chunks = objects.read_all([arrays.outcome_object(shard) for shard in shards])
    whole = hashlib.sha256()
    for shard, chunk in zip(shards, chunks, strict=True):
        if chunk is not None and len(chunk) == layout.shard_samples:
            whole.update(chunk)
            row = np.frombuffer(chunk, np.uint8)[: shard.stop - shard.start]
            outcome[shard.view, shard.start : shard.stop] = row
    if complete and whole.hexdigest() != digest:
        raise _damaged(objects, "outcome")
    return outcome


def require_believable(objects: Objects, layout: StoreLayout) -> None:
    """Refuse a layout of very many shards that the store has not even the view parameters for: to
    list its shards would take more memory than the store has bytes.

    Raises:
        StoreFormatError: it is absurd.
    """
    views = arrays.column_object(arrays.column_documents(layout, ("",))["view"], "view")
    nbytes = 8 * layout.views * layout.samples  # of one parameter
    if layout.shard_count > LISTED_SHARDS and (objects.size(views) or 0) < nbytes:
        raise StoreFormatError(
            "the manifest of this store claims far more than the store holds.",
            store=objects.location,
            claims=f"{layout.views} views of {layout.samples} samples",
            next=AGAIN,
        )


def read_receipts(objects: ReadableObjects, layout: StoreLayout, digest: str | None) -> np.ndarray:
    """The sha256 of every shard object: uint8 (views, shards, taps, 32).

    Raises:
        StoreFormatError: they are not those that the manifest states.
    """
    shape = (len(layout.taps), arrays.DIGEST_BYTES)
    receipts = np.zeros((layout.views, layout.shards_per_view, *shape), np.uint8)
    whole = hashlib.sha256()
    shards = layout.shards()
    found = objects.read_all([arrays.receipt_object(shard) for shard in shards])
    for shard, data in zip(shards, found, strict=True):
        if data is not None and len(data) == shape[0] * shape[1]:
            whole.update(data)
            receipts[shard.view, shard.index] = np.frombuffer(data, np.uint8).reshape(shape)
    if whole.hexdigest() != digest:
        raise _damaged(objects, "receipt")
    return receipts


def metadata_digest(objects: ReadableObjects, layout: StoreLayout) -> str:
    """The sha256 of the `zarr.json` of every array and of the group `taps`, in order of names."""
    whole = hashlib.sha256()
    for name in sorted(arrays.all_documents(layout, ())):
        whole.update(objects.read(name, DOCUMENT_BYTES) or b"")
    return whole.hexdigest()


def require_metadata(objects: ReadableObjects, layout: StoreLayout, digest: str | None) -> None:
    """Compare all arrays' metadata with the manifest's digest of it.

    Raises:
        StoreFormatError: they differ.
    """
    if metadata_digest(objects, layout) != digest:
        raise _damaged(objects, "metadata")


def _document(objects: ReadableObjects, name: str) -> dict[str, Any]:
    """The metadata of one array."""
    content = objects.read(f"{name}/zarr.json", DOCUMENT_BYTES) or b""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise StoreFormatError(
            "an array of this store is missing.", store=objects.location, array=name, next=AGAIN
        )
    return document


def read_view_columns(objects: ReadableObjects) -> tuple[str, ...]:
    """The names of the view parameters.

    Raises:
        StoreFormatError: they are not there.
    """
    attributes = _document(objects, "view").get("attributes")
    names = attributes.get("columns") if isinstance(attributes, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise StoreFormatError("the view parameters have no columns.", store=objects.location)
    return tuple(names)


def _column(
    objects: ReadableObjects, name: str, document: dict[str, Any], digest: str | None
) -> np.ndarray:
    """A column that has its digest, read only. View parameters, the only ones that are large, are a
    map of their file where a store lies in a folder: it takes no memory that the system cannot take
    back.
    """
    dtype = np.dtype(document["data_type"])
    count = int(np.prod([int(side) for side in document["shape"]], dtype=object))
    place, nbytes = arrays.column_object(document, name), count * dtype.itemsize
    data: bytes | memoryview | None
    if name == "view" and objects.lasting and nbytes >= WORTH_MAPPING:
        found = objects.mapped(place)
        data = None if found is None else found.data
    else:
        data = objects.get(place, nbytes)
    if data is None or len(data) != nbytes or hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(objects, name)
    values = np.frombuffer(data, dtype.newbyteorder("<")).reshape(document["shape"])
    values = values.astype(dtype, copy=False)
    values.flags.writeable = False
    return values


def _damaged(objects: ReadableObjects, name: str) -> StoreFormatError:
    return StoreFormatError(
        "an array of this store does not match the digest in its manifest.",
        store=objects.location,
        array=name,
        next=AGAIN,
    )


def _contradiction(
    objects: ReadableObjects, name: str, expected: dict[str, Any]
) -> StoreFormatError:
    found = _document(objects, name)
    differing = sorted(key for key in expected if found.get(key) != expected[key])
    return StoreFormatError(
        "the manifest of this store contradicts its arrays.",
        store=objects.location,
        array=name,
        manifest=", ".join(f"{key} {expected[key]}" for key in differing),
        array_says=", ".join(f"{key} {found.get(key)}" for key in differing),
    )
