"""Lossless compression of a tap's samples, by codecs that every Zarr v3 library knows.

A compressed payload says itself how long it is when decompressed. That is compared with what the
tap makes it before anything is decompressed, so that no file can make us allocate more.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numcodecs import blosc, zstd

from rdcache.store.shard import shard_bytes
from rdcache.store.spec import DTYPES, TapSpec

ZSTD_LEVEL = 1  # higher levels gain no more on features, and cost time
BLOSC_LEVEL = 5
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
BLOSC_HEADER = struct.Struct("<4B3I")


def codec_documents(tap: TapSpec) -> list[dict[str, Any]]:
    """The tap's codec as Zarr metadata, to stand between `bytes` and `crc32c`."""
    if tap.codec == "zstd":
        return [{"name": "zstd", "configuration": {"level": ZSTD_LEVEL, "checksum": False}}]
    if tap.codec == "blosc":
        configuration = {
            "typesize": DTYPES[tap.dtype],
            "cname": "lz4",
            "clevel": BLOSC_LEVEL,
            "shuffle": "shuffle",
            "blocksize": tap.nbytes,
        }
        return [{"name": "blosc", "configuration": configuration}]
    return []


def compress(tap: TapSpec, payload: np.ndarray) -> np.ndarray:
    """One sample's bytes, uint8 (tap.nbytes,), as they are stored: uint8 (n,).

    The same bytes give the same bytes. That is why blosc gets one block a sample: the order of
    several would be that in which its threads are done.
    """
    if tap.codec == "zstd":
        packed = zstd.compress(payload, ZSTD_LEVEL, False)
    elif tap.codec == "blosc":
        codec = blosc.Blosc("lz4", BLOSC_LEVEL, blosc.SHUFFLE, blocksize=tap.nbytes)
        packed = codec.encode(payload.view(tap.stored_dtype))
    else:
        return payload
    return np.frombuffer(packed, np.uint8)


def largest_shard(tap: TapSpec, present: int, chunks: int) -> int:
    """The most bytes that a shard object with `present` samples can have; as many as it has to have
    where the tap is not compressed.
    """
    # Zstandard's ZSTD_compressBound; that of blosc is 16 bytes more than there were.
    more = 0 if tap.codec == "none" else (tap.nbytes >> 8) + 64
    return shard_bytes(tap.nbytes + more, present, chunks)


def decompress(tap: TapSpec, payload: np.ndarray, row: np.ndarray) -> None:
    """Decompress one sample into `row`, uint8 (tap.nbytes,).

    Raises:
        ValueError: the payload is damaged, or of another length than the tap's.
    """
    stated = {"zstd": _zstd_length, "blosc": _blosc_length}[tap.codec](payload)
    if stated != row.size:
        raise ValueError(f"a payload of {stated} bytes, where the tap has {row.size}")
    try:
        {"zstd": zstd.decompress, "blosc": blosc.decompress}[tap.codec](payload, row)
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def _zstd_length(payload: np.ndarray) -> int | None:
    """What the header of a frame (RFC 8878, 3.1.1.1) states; None where it states nothing."""
    header = payload[:18].tobytes()
    if len(header) < 6 or header[:4] != ZSTD_MAGIC:
        return None
    descriptor = header[4]
    flag, single_segment = descriptor >> 6, bool(descriptor & 0x20)
    width = (1 if single_segment else 0, 2, 4, 8)[flag]
    start = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
    field = header[start : start + width]
    if not width or len(field) < width:
        return None
    return int.from_bytes(field, "little") + (256 if width == 2 else 0)


def _blosc_length(payload: np.ndarray) -> int | None:
    """What the header of a blosc buffer states, if the rest of it makes sense."""
    if payload.size < BLOSC_HEADER.size:
        return None
    *_, nbytes, block, stored = BLOSC_HEADER.unpack(payload[: BLOSC_HEADER.size].tobytes())
    return int(nbytes) if stored == payload.size and block <= max(nbytes, 128) else None
