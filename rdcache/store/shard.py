"""One shard of a tap as bytes, in the layout of Zarr v3's sharding codec.

Payloads of the inner chunks (one sample each: its bytes, then their crc32c) lie one
after the other; at the end comes the index: offset and length of each chunk as uint64, both
2**64-1 for a chunk that is absent, and the index's own crc32c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import google_crc32c
import numpy as np

from rdcache.errors import CorruptShardError

ABSENT = np.uint64(2**64 - 1)
CHECKSUM_BYTES = 4
THREADS = 4


def encode_shard(
    rows: np.ndarray,
    present: np.ndarray,
    chunks: int,
    compress: Callable[[np.ndarray], np.ndarray] | None = None,
) -> list[bytes | memoryview]:
    """Lay out a shard.

    Args:
        rows: (n, *tap) C-contiguous little-endian samples, n ≤ chunks.
        present: bool (n,); rows that are not present are left absent.
        chunks: how many inner chunks a full shard has.
        compress: what is done to the bytes of each row, uint8 (n,).

    Returns:
        The pieces of the object, in order; uncompressed payloads are views of `rows`, not copies.
    """
    raw = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    index = np.full((chunks, 2), ABSENT, "<u8")
    numbers = np.flatnonzero(present)
    payloads = [raw[number] for number in numbers]
    if compress is not None:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="compress") as pool:
            payloads = list(pool.map(compress, payloads))
    pieces: list[bytes | memoryview] = []
    offset = 0
    for number, payload in zip(numbers, payloads, strict=True):
        length = len(payload) + CHECKSUM_BYTES
        pieces += [payload.data, _checksum(payload)]
        index[number] = offset, length
        offset += length
    table = index.tobytes()
    return [*pieces, table, _checksum(table)]


def decode_index(tail: bytes | memoryview, chunks: int) -> np.ndarray:
    """Read the index from the last bytes of a shard object.

    Args:
        tail: the last `index_bytes(chunks)` bytes.

    Returns:
        uint64 (chunks, 2): offset and length; both 2**64-1 for an absent chunk.

    Raises:
        CorruptShardError: the index does not match its checksum.
    """
    table, checksum = bytes(tail[:-CHECKSUM_BYTES]), bytes(tail[-CHECKSUM_BYTES:])
    if len(tail) != index_bytes(chunks) or _checksum(table) != checksum:
        raise CorruptShardError("the index of a shard does not match its checksum.")
    return np.frombuffer(table, "<u8").reshape(chunks, 2)


def index_bytes(chunks: int) -> int:
    """Length of a shard's index with its checksum."""
    return 16 * chunks + CHECKSUM_BYTES


def shard_bytes(sample: int, present: int, chunks: int) -> int:
    """Length of a shard object with `present` samples of `sample` bytes."""
    return present * (sample + CHECKSUM_BYTES) + index_bytes(chunks)


def is_whole(tail: bytes, size: int, present: int) -> bool:
    """Whether a compressed shard of `size` bytes is as long as its own index says.

    Args:
        tail: the index.
        present: how many samples it has to hold.
    """
    try:
        table = decode_index(tail, (len(tail) - CHECKSUM_BYTES) // 16)
    except CorruptShardError:
        return False
    lengths = table[table[:, 0] != ABSENT, 1]
    # Of a hostile index the sum may wrap; that it lies within the object is the reader's question.
    return len(lengths) == present and int(lengths.sum()) + len(tail) == size


def crc32c(payload: np.ndarray) -> int:
    """The checksum of a payload (uint8, contiguous)."""
    checksum: int = google_crc32c.value(payload)
    return checksum


def matches(payload: np.ndarray, stated: np.ndarray) -> bool:
    """Whether a payload (uint8, contiguous) has the crc32c that is stated (uint8 (4,))."""
    return crc32c(payload) == int.from_bytes(stated.tobytes(), "little")


def _checksum(data: bytes | np.ndarray) -> bytes:
    return struct.pack("<I", google_crc32c.value(data))
