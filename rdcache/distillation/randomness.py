"""Random numbers that are counted, not drawn: each use has a key of its own.

Nothing depends on how many numbers were drawn before, so a resumed run goes on exactly as it would
have, and two methods of one seed see the same batches.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np


def counted_generator(*key: str | int) -> np.random.Generator:
    """A NumPy generator for one use, such as ("batches", seed, epoch)."""
    return np.random.Generator(np.random.Philox(key=np.frombuffer(counted_key(*key), np.uint64)))


def counted_seed(*key: str | int) -> int:
    """A 63-bit seed for one use, for generators of other libraries."""
    return int.from_bytes(counted_key(*key)[:8], "little") >> 1


def counted_key(*key: str | int) -> bytes:
    """The 16 bytes that a use's random numbers are made of."""
    return hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=16).digest()


def counted_keys(*key: str | int, last: Iterable[str]) -> bytes:
    """The bytes of many uses that differ in the last part of their key, one after the other."""
    prefix = "".join(f"{part}/" for part in key).encode()
    parts = (hashlib.blake2b(prefix + part.encode(), digest_size=16).digest() for part in last)
    return b"".join(parts)
