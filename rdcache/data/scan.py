"""Looking at every image of a dataset once: content digest, size, pixel digest, perceptual hash.

Results are kept in the user's cache, keyed by relative path, file size and modification time, so
that a dataset of ten thousand images opens in a second the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.fft import dctn

from rdcache.data.decoding import UnreadableImageError
from rdcache.data.listing import Entry, Listing
from rdcache.files import user_cache
from rdcache.progress import Progress, ignore
from rdcache.store.threads import usable_cores

VERSION = 2  # of what is kept, and of what is readable; other versions are scanned again
CLOSED = "the file cannot be opened"
THUMBNAIL = 32
HASH_SIDE = 8
THREADS = max(2, usable_cores())


@dataclass(frozen=True)
class Scan:
    """What one look at an image tells.

    Attributes:
        stamp: the file's size and modification time, see `Listing.stamp`.
        content: blake2b-128 of the file's bytes.
        size: (width, height), upright; (0, 0) if the image is unreadable.
        pixels: blake2b-128 of size and grey pixels: equal for equal pictures in other formats.
        perceptual: 64-bit DCT hash of the grey picture.
        thumbnail: uint8 (32, 32), grey.
        problem: why it is unreadable, or an empty string.
    """

    stamp: tuple[int, int]
    content: bytes
    size: tuple[int, int]
    pixels: bytes
    perceptual: int
    thumbnail: np.ndarray
    problem: str = ""


def scan(listing: Listing, folder: Path, on_progress: Progress = ignore) -> list[Scan]:
    """Scan every entry of a listing, in its order.

    Args:
        folder: the dataset's folder; names the cached results, whose keys are relative to it.
    """
    # Taken before the files are opened: what changes in between has another stamp the next time.
    stamps = [listing.stamp(entry.path) for entry in listing.entries]
    cache_file = _cache_file(folder)
    known = _load(cache_file)
    todo = [
        number
        for number, (entry, stamp) in enumerate(zip(listing.entries, stamps, strict=True))
        if entry.name not in known
        or known[entry.name].stamp != stamp
        or known[entry.name].problem.startswith(CLOSED)  # may be open by now
    ]
    results: dict[int, Scan] = {}
    with ThreadPoolExecutor(THREADS, thread_name_prefix="scan") as pool:
        jobs = pool.map(lambda n: scan_entry(listing, listing.entries[n], stamps[n]), todo)
        for done, (number, result) in enumerate(zip(todo, jobs, strict=True), start=1):
            results[number] = result
            on_progress(done, len(todo), "images looked at")
    scans = [
        results[number] if number in results else known[entry.name]
        for number, entry in enumerate(listing.entries)
    ]
    if todo:
        _save(cache_file, listing.entries, scans)
    return scans


def scan_entry(listing: Listing, entry: Entry, stamp: tuple[int, int]) -> Scan:
    """Look at one image; an unreadable one gives a scan that says why."""
    try:
        content, pixels = listing.open(entry)
    except UnreadableImageError as error:
        return _unreadable(stamp, str(error))
    except OSError as error:
        return _unreadable(stamp, f"{CLOSED} ({error.strerror or type(error).__name__})")
    except ValueError as error:  # a path that no file can have: it holds a NUL byte
        return _unreadable(stamp, f"{CLOSED} ({error})")
    grey = Image.fromarray(pixels).convert("L")
    size = grey.size
    shape = f"{size[0]}x{size[1]}".encode()
    return Scan(
        stamp=stamp,
        content=hashlib.blake2b(content, digest_size=16).digest(),
        size=size,
        pixels=hashlib.blake2b(shape + grey.tobytes(), digest_size=16).digest(),
        perceptual=perceptual_hash(grey),
        thumbnail=np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.uint8),
    )


def _unreadable(stamp: tuple[int, int], problem: str) -> Scan:
    nothing = np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
    return Scan(stamp, b"\0" * 16, (0, 0), b"\0" * 16, 0, nothing, problem)


def perceptual_hash(grey: Image.Image) -> int:
    """64 bits: which low-frequency cosine coefficients of a 32×32 thumbnail exceed their median."""
    small = np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = dctn(small, norm="ortho")[:HASH_SIDE, :HASH_SIDE].ravel()
    bits = low > np.median(low[1:])  # the first coefficient is the brightness alone
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def cache_folder() -> Path:
    """Where scans are kept: RDCACHE_CACHE, else the user's cache folder."""
    return user_cache() / "scans"


def _cache_file(folder: Path) -> Path:
    name = hashlib.blake2b(str(folder.absolute()).encode(), digest_size=12).hexdigest()
    return cache_folder() / f"{name}-v{VERSION}.npz"


def _load(file: Path) -> dict[str, Scan]:
    """Kept scans by name; none if there is no such file or it is damaged."""
    try:
        with np.load(BytesIO(file.read_bytes()), allow_pickle=False) as kept:
            columns = {name: kept[name] for name in kept.files}
        rows = zip(*(columns[name] for name in COLUMNS), strict=True)
        return {
            str(name): Scan(
                stamp=(int(stamp[0]), int(stamp[1])),
                content=content.tobytes(),
                size=(int(size[0]), int(size[1])),
                pixels=pixels.tobytes(),
                perceptual=int(perceptual),
                thumbnail=thumbnail,
                problem=str(problem),
            )
            for name, stamp, content, size, pixels, perceptual, thumbnail, problem in rows
        }
    except Exception:  # a damaged archive raises nearly anything, and a cache is worth no error
        return {}


COLUMNS = ("name", "stamp", "content", "size", "pixels", "perceptual", "thumbnail", "problem")


def _save(file: Path, entries: Sequence[Entry], scans: Sequence[Scan]) -> None:
    """Keep scans; a cache that cannot be written only costs time."""
    columns = {
        "name": np.array([entry.name for entry in entries]),
        "stamp": np.array([scan.stamp for scan in scans], np.int64),
        "content": np.array([list(scan.content) for scan in scans], np.uint8),
        "size": np.array([scan.size for scan in scans], np.int32),
        "pixels": np.array([list(scan.pixels) for scan in scans], np.uint8),
        "perceptual": np.array([scan.perceptual for scan in scans], np.uint64),
        "thumbnail": np.stack([scan.thumbnail for scan in scans]),
        "problem": np.array([scan.problem for scan in scans]),
    }
    temporary = file.with_name(f".{file.name}.{os.getpid()}.partial")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as handle:
                np.savez(handle, allow_pickle=False, **columns)
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)
