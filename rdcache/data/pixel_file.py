"""Decoded images of a dataset in one file, mapped by every process that trains from them.

The file holds the pixels of all images one after the other (uint8, height × width × 3), then one
crc32c of each (uint32, little-endian). It is built under a lock, under another name, and renamed
when it is whole and on the disk, so that it is never there in part. Its name is a digest of what
decides its content: dataset, sizes, rules of decoding and of reduction, version of Pillow.
Folder and file are their owner's alone, since the images may show patients.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import numpy as np
import PIL

from rdcache.data import decoding
from rdcache.errors import CorruptInputsError, FileWriteError, RdcacheError, UsageError
from rdcache.files import sync_folder

FOLDER = "rdcache-inputs"
CHECKSUM = np.dtype("<u4")


class PixelFile:
    """A file of images that is whole; each image is checked when it is first used.

    Args:
        sizes: int64 (images, 2), width and height.

    Raises:
        ValueError: the file is not as long as these images are.
    """

    def __init__(self, path: Path, sizes: np.ndarray) -> None:
        self.path = path
        self._sizes = sizes
        self._ends = np.cumsum(3 * sizes.prod(axis=1))
        if path.stat().st_size != file_length(sizes):
            raise ValueError(f"{path} has another length")
        self._bytes = np.asarray(np.memmap(path, np.uint8, "r"))
        self._checksums = np.array(self._bytes[self._ends[-1] :]).view(CHECKSUM)
        self._checked = np.zeros(len(sizes), bool)

    def __getitem__(self, number: int) -> np.ndarray:
        """One image: uint8 (H, W, 3), read-only, in the file's own pages.

        Raises:
            CorruptInputsError: it does not match its checksum.
        """
        width, height = self._sizes[number].tolist()
        end = int(self._ends[number])
        flat = self._bytes[end - 3 * width * height : end]
        if not self._checked[number]:
            if google_crc32c.value(flat) != self._checksums[number]:
                raise CorruptInputsError(
                    "an image that was kept for students is damaged.",
                    file=self.path,
                    next="delete this file, it is made again; and have an eye on the disk",
                )
            self._checked[number] = True
        return flat.reshape(height, width, 3)


def open_pixel_file(
    folder: Path,
    dataset_digest: str,
    reduction: int,
    sizes: np.ndarray,
    load: Callable[[int], np.ndarray],
) -> PixelFile:
    """Open the file of these images, after building it where it is not there or not whole.

    Args:
        folder: in it, a folder of its owner's alone is made.
        reduction: version of the rule by which `load` makes an image smaller.
        sizes: int64 (images, 2), width and height.
        load: gives an image of that size; called from several threads.

    Raises:
        FileWriteError: it cannot be written: no right to, no space.
        UsageError: the folder belongs to somebody else.
    """
    private = folder / FOLDER
    path = private / f"{_key(dataset_digest, reduction, sizes)}.pixels"
    try:
        private.mkdir(mode=0o700, parents=True, exist_ok=True)
        require_own(private)
        with _locked(path.with_suffix(".lock")):
            try:
                return PixelFile(path, sizes)
            except (FileNotFoundError, ValueError):
                _build(path, sizes, load)
        return PixelFile(path, sizes)
    except OSError as error:
        if isinstance(error, RdcacheError):
            raise
        raise FileWriteError(
            "the images cannot be kept on disk.",
            folder=private,
            needed=f"{file_length(sizes) / 1e9:.1f} GB",
            why=error.strerror or error,
            next="free some space, name another --inputs-cache, or leave it out",
        ) from error


def file_length(sizes: np.ndarray) -> int:
    """Bytes of a file of such images."""
    return int(3 * sizes.prod(axis=1).sum()) + CHECKSUM.itemsize * len(sizes)


def _build(path: Path, sizes: np.ndarray, load: Callable[[int], np.ndarray]) -> None:
    """Write all images, several at a time, each at its place."""
    partial = path.with_suffix(".partial")
    starts = np.concatenate([[0], np.cumsum(3 * sizes.prod(axis=1))])
    checksums = np.zeros(len(sizes), CHECKSUM)
    # One that was killed may have left its own; under the lock, it is nobody's.
    file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)

    def write(number: int) -> None:
        pixels = np.ascontiguousarray(load(number)).reshape(-1)
        checksums[number] = google_crc32c.value(pixels)
        _write_all(file, pixels.data, int(starts[number]))

    try:
        os.posix_fallocate(file, 0, file_length(sizes))  # a full disk says so now
        with ThreadPoolExecutor(thread_name_prefix="pixel-file") as pool:
            for _ in pool.map(write, range(len(sizes))):
                pass
        _write_all(file, memoryview(checksums.tobytes()), int(starts[-1]))
        os.fsync(file)
        partial.replace(path)
    finally:
        os.close(file)
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def _write_all(file: int, data: memoryview, offset: int) -> None:
    while len(data):
        written = os.pwrite(file, data, offset)
        data, offset = data[written:], offset + written


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process at a time builds a file; the lock goes with the process."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def require_own(folder: Path) -> None:
    """Whoever could write here could have students trained on other images."""
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise UsageError(
            "the folder for decoded images is open to others, or belongs to somebody else.",
            folder=folder,
            next=f"chmod 700 {folder}, or name another --inputs-cache",
        )


def _key(dataset_digest: str, reduction: int, sizes: np.ndarray) -> str:
    facts = [dataset_digest, sizes.tolist(), decoding.VERSION, reduction, PIL.__version__]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
