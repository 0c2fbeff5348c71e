"""The Zarr v3 arrays of a store: their metadata documents, and the names of their objects.

The documents are written out here rather than by zarr-python, so that a store is the same bytes
whatever version wrote it, and so that opening one can compare them word by word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rdcache.store.compression import codec_documents
from rdcache.store.spec import SPLITS, ShardRef, StoreLayout, TapSpec

UID_BYTES = 16
DIGEST_BYTES = 32
CHECKSUM = {"name": "crc32c"}


def all_documents(layout: StoreLayout, view_columns: Sequence[str]) -> dict[str, bytes]:
    """The `zarr.json` of every array and of the group `taps`, by object name."""
    documents = {
        "taps/zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": {}},
        **{f"{name}/zarr.json": it for name, it in column_documents(layout, view_columns).items()},
        **{f"{name}/zarr.json": it for name, it in progress_documents(layout).items()},
        **{f"taps/{tap.name}/zarr.json": tap_document(layout, tap) for tap in layout.taps},
    }
    return {name: encode(document) for name, document in documents.items()}


def encode(document: Mapping[str, Any]) -> bytes:
    """A metadata document as the bytes of its object."""
    return json.dumps(document, indent=2).encode()


def tap_document(layout: StoreLayout, tap: TapSpec) -> dict[str, Any]:
    """A tap's array: axes (view, sample, *tap), a chunk for each sample, sharded, compressed if it
    is to be, checksummed.
    """
    # zarr-python knows no bfloat16, so its bit patterns are stored as uint16 and named as such.
    as_bits = tap.dtype == "bfloat16"
    little = {"name": "bytes", "configuration": {"endian": "little"}}  # of the index
    sharding = {
        "name": "sharding_indexed",
        "configuration": {
            "chunk_shape": [1, 1, *tap.shape],
            "codecs": [_bytes(tap), *codec_documents(tap), CHECKSUM],
            "index_codecs": [little, CHECKSUM],
            "index_location": "end",
        },
    }
    return _array(
        shape=(layout.views, layout.samples, *tap.shape),
        data_type="uint16" if as_bits else tap.dtype,
        chunk=(1, layout.shard_samples, *tap.shape),
        codecs=[sharding],
        dimensions=("view", "sample", *tap.axes),
        attributes={"rdcache_dtype": tap.dtype},
    )


def _bytes(tap: TapSpec) -> dict[str, Any]:
    """The codec of a tap's numbers; single bytes have no order."""
    if tap.dtype == "int8":
        return {"name": "bytes"}
    return {"name": "bytes", "configuration": {"endian": "little"}}


def column_documents(layout: StoreLayout, view_columns: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The arrays that describe samples, views and projections; each is one uncompressed chunk."""
    samples = layout.samples
    parameters = (layout.views, samples, len(view_columns))
    names = {"names": list(SPLITS)}
    columns = {"columns": list(view_columns)}
    label = (samples, layout.findings) if layout.findings else (samples,)
    return {
        "uid": _column("uint8", (samples, UID_BYTES), ("sample", "uid_byte")),
        "label": _column("int64", label, label_axes(layout)),
        "split": _column("int8", (samples,), ("sample",), names),
        "group": _column("int64", (samples,), ("sample",)),
        "view": _column("float64", parameters, ("view", "sample", "parameter"), columns),
        **projection_documents(layout),
    }


def label_axes(layout: StoreLayout) -> tuple[str, ...]:
    """The dimensions of the labels: several findings of a sample have one of their own."""
    return ("sample", "finding") if layout.findings else ("sample",)


def projection_documents(layout: StoreLayout) -> dict[str, dict[str, Any]]:
    """Mean and basis of each tap with fewer channels than the teacher's."""
    documents = {}
    for tap in layout.taps:
        if tap.projected_from is not None:
            channel, before = f"{tap.name}_channel", f"{tap.name}_teacher_channel"
            shape = (tap.shape[tap.channel_axis], tap.projected_from)
            documents[f"taps/{tap.name}.basis"] = _column("float32", shape, (channel, before))
            documents[f"taps/{tap.name}.mean"] = _column("float32", shape[1:], (before,))
    return documents


def progress_documents(layout: StoreLayout) -> dict[str, dict[str, Any]]:
    """`outcome` and `receipt`, whose chunks appear as shards are done."""
    taps = len(layout.taps)
    meaning = {"0": "not extracted", "1": "stored", "2": "not finite"}
    return {
        "outcome": _array(
            shape=(layout.views, layout.samples),
            data_type="uint8",
            chunk=(1, layout.shard_samples),
            codecs=_plain("uint8"),
            dimensions=("view", "sample"),
            attributes={"meaning": meaning},
        ),
        "receipt": _array(
            shape=(layout.views, layout.shards_per_view, taps, DIGEST_BYTES),
            data_type="uint8",
            chunk=(1, 1, taps, DIGEST_BYTES),
            codecs=_plain("uint8"),
            dimensions=("view", "shard", "tap", "receipt_byte"),
            attributes={"taps": [tap.name for tap in layout.taps], "digest": "sha256"},
        ),
    }


def agree(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """Whether a document on disk says what it has to say; it may say more in its attributes."""
    structure = expected.keys() - {"attributes", "storage_transformers"}
    attributes = found.get("attributes", {})
    return (
        all(_normal(found.get(key)) == _normal(expected[key]) for key in structure)
        and not found.get("storage_transformers")
        and isinstance(attributes, Mapping)
        and all(attributes.get(key) == value for key, value in expected["attributes"].items())
    )


def tap_object(tap: TapSpec, view: int, index: int) -> str:
    """Name of the object that holds one shard of a tap."""
    return f"taps/{tap.name}/c/{view}/{index}" + "/0" * len(tap.shape)


def column_object(document: Mapping[str, Any], name: str) -> str:
    """Name of the only chunk of a column."""
    return f"{name}/c" + "/0" * len(document["shape"])


def outcome_object(shard: ShardRef) -> str:
    """Name of the chunk of `outcome` that belongs to a shard."""
    return f"outcome/c/{shard.view}/{shard.index}"


def receipt_object(shard: ShardRef) -> str:
    """Name of the chunk of `receipt` that belongs to a shard."""
    return f"receipt/c/{shard.view}/{shard.index}/0/0"


def _array(
    shape: Sequence[int],
    data_type: str,
    chunk: Sequence[int],
    codecs: list[dict[str, Any]],
    dimensions: Sequence[str],
    attributes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": data_type,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if data_type.startswith("float") else 0,
        "codecs": codecs,
        "dimension_names": list(dimensions),
        "attributes": dict(attributes or {}),
        "storage_transformers": [],
    }


def _column(
    data_type: str,
    shape: Sequence[int],
    dimensions: Sequence[str],
    attributes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    return _array(shape, data_type, shape, _plain(data_type), dimensions, attributes)


def _plain(data_type: str) -> list[dict[str, Any]]:
    """Uncompressed little-endian bytes; for single bytes Zarr leaves the order away."""
    if data_type in ("uint8", "int8"):
        return [{"name": "bytes"}]
    return [{"name": "bytes", "configuration": {"endian": "little"}}]


def _normal(value: Any) -> Any:
    """Make `{"name": x}` and `{"name": x, "configuration": {}}` the same, as Zarr does."""
    if isinstance(value, Mapping):
        return {key: _normal(each) for key, each in value.items() if each or key != "configuration"}
    return [_normal(each) for each in value] if isinstance(value, list) else value
