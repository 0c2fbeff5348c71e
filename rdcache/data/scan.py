"""Looking at every image of a dataset once: content digest, size, pixel digest, perceptual hash,
and at its mask, where it has one.

Results are kept in the user's cache, keyed by relative path, file size and modification time, so
that a dataset of ten thousand images opens in a second the next time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy.fft import dctn

from rdcache.data.decoding import UnreadableImageError
from rdcache.data.listing import Entry, Listing
from rdcache.data.samples import mask_stamp
from rdcache.data.volumes import Volume
from rdcache.errors import RdcacheError
from rdcache.files import user_cache
from rdcache.memory import available_memory
from rdcache.progress import Progress, ignore
from rdcache.store.threads import usable_cores

VERSION = 3  # of what is kept, and of what is readable; other versions are scanned again
CLOSED = "the file cannot be opened"
NO_DIGEST = b"\0" * 16
THUMBNAIL = 32
HASH_SIDE = 8
THREADS = max(2, usable_cores())
VOLUME_THREADS = 8
VOLUME_BYTES = 2**31  # that a CT of six hundred slices takes while it and its mask are looked at


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
        mask_stamp: of its mask's files, see `samples.mask_stamp`.
        mask: blake2b-128 of the mask's size and class numbers; zeros without one.
        mask_counts: pixels of each class in the mask; empty without one.
        spacing: of volumes, millimetres along z, y, x, and `size` is voxels along these.
        channels: of an image as it is decoded.
    """

    stamp: tuple[int, int]
    content: bytes
    size: tuple[int, ...]
    pixels: bytes
    perceptual: int
    thumbnail: np.ndarray
    problem: str = ""
    mask_stamp: int = 0
    mask: bytes = NO_DIGEST
    mask_counts: tuple[int, ...] = ()
    spacing: tuple[float, ...] = ()
    channels: int = 3


class Stamps(NamedTuple):
    """When an image and its mask were written, taken before they are opened: what changes in
    between has other stamps the next time.
    """

    image: tuple[int, int]
    mask: int


def stamps_of(listing: Listing, entry: Entry) -> Stamps:
    """The stamps of an entry's files as they are now."""
    if listing.task != "segmentation":
        return Stamps(listing.stamp(entry.path), 0)
    return Stamps(
        listing.stamp(entry.path), mask_stamp([listing.stamp(path) for path in entry.masks])
    )


def scan(
    listing: Listing, folder: Path, on_progress: Progress = ignore, name: str = ""
) -> list[Scan]:
    """Scan every entry of a listing, in its order.

    Args:
        folder: the dataset's folder; names the cached results, whose keys are relative to it.
        name: of the dataset, where several of one folder are told apart by it.
    """
    stamps = [stamps_of(listing, entry) for entry in listing.entries]
    cache_file = _cache_file(folder, listing, name)
    known = _load(cache_file)
    todo = [
        number
        for number, (entry, stamp) in enumerate(zip(listing.entries, stamps, strict=True))
        if entry.name not in known
        or (known[entry.name].stamp, known[entry.name].mask_stamp) != stamp
        or CLOSED in known[entry.name].problem  # may be open by now
    ]
    results: dict[int, Scan] = {}
    threads = THREADS
    if listing.dimensions == 3:
        threads = min(THREADS, VOLUME_THREADS, max(1, available_memory() // VOLUME_BYTES))
    with ThreadPoolExecutor(threads, thread_name_prefix="scan") as pool:
        jobs = pool.map(lambda n: scan_entry(listing, listing.entries[n], stamps[n]), todo)
        for done, (number, result) in enumerate(zip(todo, jobs, strict=True), start=1):
            results[number] = result
            on_progress(done, len(todo), "images looked at")
    scans = [
        results[number] if number in results else known[entry.name]
        for number, entry in enumerate(listing.entries)
    ]
    if todo:
        _save(cache_file, listing, scans)
    return scans


def scan_entry(listing: Listing, entry: Entry, stamps: Stamps) -> Scan:
    """Look at one image and its mask; an unreadable one gives a scan that says why.

    Raises:
        DatasetError: what reads such files is not installed, or the one that all lie in is damaged.
    """
    try:
        content, pixels = listing.open(entry)
    except RdcacheError:
        raise
    except (OSError, ValueError) as error:
        return _unreadable(stamps, _reason(error))
    of_kind = _of_volume if isinstance(pixels, Volume) else _of_image
    looked_at = of_kind(stamps, content, pixels)
    return looked_at if listing.read_mask is None else with_mask(looked_at, listing, entry, stamps)


def _of_volume(stamps: Stamps, content: bytes, volume: Volume) -> Scan:
    """Volumes are compared voxel by voxel alone: their hash is far from every other one."""
    shape = f"{volume.values.shape} {volume.values.dtype}".encode()
    hasher = hashlib.blake2b(shape, digest_size=16)
    hasher.update(np.ascontiguousarray(volume.values).data)
    return Scan(
        stamp=stamps.image,
        content=hashlib.blake2b(content, digest_size=16).digest(),
        size=volume.shape,
        pixels=hasher.digest(),
        perceptual=int.from_bytes(hasher.digest()[:8], "big"),
        thumbnail=np.zeros((THUMBNAIL, THUMBNAIL), np.uint8),
        spacing=volume.spacing,
        channels=len(volume.values),
    )


def _of_image(stamps: Stamps, content: bytes, pixels: np.ndarray) -> Scan:
    grey = Image.fromarray(pixels).convert("L")
    size = grey.size
    shape = f"{size[0]}x{size[1]}".encode()
    return Scan(
        stamp=stamps.image,
        content=hashlib.blake2b(content, digest_size=16).digest(),
        size=size,
        pixels=hashlib.blake2b(shape + grey.tobytes(), digest_size=16).digest(),
        perceptual=perceptual_hash(grey),
        thumbnail=np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.uint8),
    )


def with_mask(looked_at: Scan, listing: Listing, entry: Entry, stamps: Stamps) -> Scan:
    """Add what one look at the mask tells; one that does not fit its image makes both unusable."""
    assert listing.read_mask is not None
    try:
        mask = listing.read_mask(entry)
    except RdcacheError:
        raise
    except (OSError, ValueError) as error:
        return _unreadable(stamps, f"its mask: {_reason(error)}")
    size = mask.shape[::-1] if mask.ndim == 2 else mask.shape
    if size != looked_at.size:
        return _unreadable(
            stamps,
            "its mask has another size "
            f"({'×'.join(map(str, size))}, the image {'×'.join(map(str, looked_at.size))})",
        )
    return replace(
        looked_at,
        mask_stamp=stamps.mask,
        mask=hashlib.blake2b(str(size).encode() + mask.tobytes(), digest_size=16).digest(),
        mask_counts=tuple(np.bincount(mask.ravel(), minlength=len(listing.classes)).tolist()),
    )


def _reason(error: OSError | ValueError) -> str:
    if isinstance(error, UnreadableImageError):
        return str(error)
    if isinstance(error, OSError):
        return f"{CLOSED} ({error.strerror or type(error).__name__})"
    return f"{CLOSED} ({error})"  # a path that no file can have: it holds a NUL byte


def _unreadable(stamps: Stamps, problem: str) -> Scan:
    nothing = np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
    return Scan(
        stamps.image, NO_DIGEST, (0, 0), NO_DIGEST, 0, nothing, problem, mask_stamp=stamps.mask
    )


def perceptual_hash(grey: Image.Image) -> int:
    """64 bits: which low-frequency cosine coefficients of a 32×32 thumbnail exceed their median."""
    small = np.asarray(grey.resize((32, 32), Image.Resampling.LANCZOS), np.float64)
    low = dctn(small, norm="ortho")[:HASH_SIDE, :HASH_SIDE].ravel()
    bits = low > np.median(low[1:])  # the first coefficient is the brightness alone
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def cache_folder() -> Path:
    """Where scans are kept: RDCACHE_CACHE, else the user's cache folder."""
    return user_cache() / "scans"


def _cache_file(folder: Path, listing: Listing, name: str) -> Path:
    """Where scans are kept; how a mask is read depends on the classes, and on its own rule."""
    classes = listing.classes if listing.task == "segmentation" else ()
    rule = [listing.mask_rule] if listing.mask_rule else []
    key = json.dumps([str(folder.absolute()), name, classes, *rule]).encode()
    digest = hashlib.blake2b(key, digest_size=12).hexdigest()
    return cache_folder() / f"{digest}-v{VERSION}.npz"


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
                size=tuple(size.tolist()),
                pixels=pixels.tobytes(),
                perceptual=int(perceptual),
                thumbnail=thumbnail,
                problem=str(problem),
                mask_stamp=int(mask_stamp),
                mask=mask.tobytes(),
                mask_counts=tuple(mask_counts.tolist()) if any(mask) else (),
                spacing=tuple(spacing.tolist()),
                channels=int(channels),
            )
            for (
                name,
                stamp,
                content,
                size,
                pixels,
                perceptual,
                thumbnail,
                problem,
                mask_stamp,
                mask,
                mask_counts,
                spacing,
                channels,
            ) in rows
        }
    except Exception:  # a damaged archive raises nearly anything, and a cache is worth no error
        return {}


COLUMNS = (
    "name",
    "stamp",
    "content",
    "size",
    "pixels",
    "perceptual",
    "thumbnail",
    "problem",
    "mask_stamp",
    "mask",
    "mask_counts",
    "spacing",
    "channels",
)


def _save(file: Path, listing: Listing, scans: Sequence[Scan]) -> None:
    """Keep scans; a cache that cannot be written only costs time."""
    no_size = (0,) * listing.dimensions
    no_spacing = (0.0,) * 3 if listing.dimensions == 3 else ()
    no_counts = (0,) * len(listing.classes) if listing.read_mask is not None else ()
    columns = {
        "name": np.array([entry.name for entry in listing.entries]),
        "stamp": np.array([scan.stamp for scan in scans], np.int64),
        "content": np.array([list(scan.content) for scan in scans], np.uint8),
        "size": np.array([scan.size if any(scan.size) else no_size for scan in scans], np.int32),
        "pixels": np.array([list(scan.pixels) for scan in scans], np.uint8),
        "perceptual": np.array([scan.perceptual for scan in scans], np.uint64),
        "thumbnail": np.stack([scan.thumbnail for scan in scans]),
        "problem": np.array([scan.problem for scan in scans]),
        "mask_stamp": np.array([scan.mask_stamp for scan in scans], np.int64),
        "mask": np.array([list(scan.mask) for scan in scans], np.uint8),
        "mask_counts": np.array([scan.mask_counts or no_counts for scan in scans], np.int64),
        "spacing": np.array([scan.spacing or no_spacing for scan in scans], np.float64),
        "channels": np.array([scan.channels for scan in scans], np.int64),
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
