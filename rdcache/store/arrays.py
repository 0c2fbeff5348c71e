"""The Zarr arrays of a store: their metadata, and the names of their objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec

from rdcache.store.spec import SPLITS, ShardRef, StoreLayout, TapSpec

DIGEST_BYTES = 32


def create_tap_array(location: Path, layout: StoreLayout, tap: TapSpec) -> None:
    """Write the metadata of one tap's array: axes (view, sample, *tap), sharded, checksummed."""
    # zarr-python knows no bfloat16, so its bit patterns are stored as uint16 and named as such.
    as_bits = tap.dtype == "bfloat16"
    zarr.create_array(
        location.as_posix(),
        name=f"taps/{tap.name}",
        shape=(layout.views, layout.samples, *tap.shape),
        chunks=(1, 1, *tap.shape),
        shards=(1, layout.shard_samples, *tap.shape),
        dtype="uint16" if as_bits else tap.dtype,
        serializer=BytesCodec(endian="little"),
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=0,
        dimension_names=("view", "sample", *tap.axes),
        attributes={"rdcache_dtype": tap.dtype},
        zarr_format=3,
        overwrite=True,
    )


def create_plain_array(
    location: Path,
    name: str,
    values: np.ndarray,
    dimensions: tuple[str, ...],
    attributes: dict[str, Any] | None = None,
) -> None:
    """Write a small array whole, in one chunk."""
    zarr.create_array(
        location.as_posix(),
        name=name,
        data=np.ascontiguousarray(values),
        chunks=values.shape,
        compressors=None,
        filters=None,
        dimension_names=dimensions,
        attributes=attributes or {},
        zarr_format=3,
        overwrite=True,
    )


def create_progress_arrays(location: Path, layout: StoreLayout) -> None:
    """Write the metadata of `outcome` and `receipt`, whose chunks appear as shards are done."""
    common: dict[str, Any] = {
        "dtype": "uint8",
        "compressors": None,
        "filters": None,
        "fill_value": 0,
        "zarr_format": 3,
        "overwrite": True,
    }
    zarr.create_array(
        location.as_posix(),
        name="outcome",
        shape=(layout.views, layout.samples),
        chunks=(1, layout.shard_samples),
        dimension_names=("view", "sample"),
        attributes={"meaning": {"0": "not extracted", "1": "stored", "2": "not finite"}},
        **common,
    )
    taps = len(layout.taps)
    zarr.create_array(
        location.as_posix(),
        name="receipt",
        shape=(layout.views, layout.shards_per_view, taps, DIGEST_BYTES),
        chunks=(1, 1, taps, DIGEST_BYTES),
        dimension_names=("view", "shard", "tap", "byte"),
        attributes={"taps": [tap.name for tap in layout.taps], "digest": "sha256"},
        **common,
    )


def tap_object(tap: TapSpec, shard: ShardRef) -> str:
    """Name of the object that holds one shard of a tap."""
    zeros = "/0" * len(tap.shape)
    return f"taps/{tap.name}/c/{shard.view}/{shard.index}{zeros}"


def outcome_object(shard: ShardRef) -> str:
    """Name of the chunk of `outcome` that belongs to a shard."""
    return f"outcome/c/{shard.view}/{shard.index}"


def receipt_object(shard: ShardRef) -> str:
    """Name of the chunk of `receipt` that belongs to a shard."""
    return f"receipt/c/{shard.view}/{shard.index}/0/0"


def split_attributes() -> dict[str, Any]:
    """What the numbers of `split` stand for."""
    return {"names": list(SPLITS)}
