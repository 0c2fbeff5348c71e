"""Which pictures of a large dataset are alike, kept in the user's cache.

Each is compared with every other, which takes a minute for a hundred thousand of them.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np

from rdcache.data import leaks
from rdcache.data.leaks import Duplicate, find_duplicates
from rdcache.data.scan import cache_folder
from rdcache.errors import FileWriteError
from rdcache.files import write_bytes

VERSION = 1  # of what `find_duplicates` makes of the same pictures
KEPT_FROM = 20_000  # pictures; fewer are compared again in a second or two
KINDS = ("exact", "near", "similar")


def known_duplicates(
    pixels: Sequence[bytes], perceptual: np.ndarray, thumbnails: np.ndarray
) -> list[Duplicate]:
    """What `find_duplicates` finds, from the last time where the same pictures are compared."""
    if len(pixels) < KEPT_FROM:
        return find_duplicates(pixels, perceptual, thumbnails)
    rules = [VERSION, leaks.CLOSE_BITS, leaks.NEAR, leaks.SIMILAR, leaks.FLAT]
    hasher = hashlib.blake2b(json.dumps(rules).encode(), digest_size=16)
    for part in (b"".join(pixels), perceptual.tobytes(), thumbnails.tobytes()):
        hasher.update(part)
    file = cache_folder() / f"{hasher.hexdigest()}.pairs.npy"
    found = _load(file)
    if found is None:
        found = find_duplicates(pixels, perceptual, thumbnails)
        _save(file, found)
    return found


def _load(file: Path) -> list[Duplicate] | None:
    """Kept pairs; nothing if there is no such file or it is damaged."""
    try:
        rows = np.load(BytesIO(file.read_bytes()), allow_pickle=False).tolist()
        return [Duplicate(first, second, KINDS[kind]) for first, second, kind in rows]  # type: ignore[arg-type]
    except (OSError, ValueError, EOFError, IndexError, TypeError):
        return None


def _save(file: Path, found: Sequence[Duplicate]) -> None:
    """Keep pairs; a cache that cannot be written only costs time."""
    rows = [(first, second, KINDS.index(kind)) for first, second, kind in found]
    data = BytesIO()
    np.save(data, np.array(rows, np.int64).reshape(-1, 3), allow_pickle=False)
    with contextlib.suppress(FileWriteError):
        write_bytes(file, data.getvalue())
