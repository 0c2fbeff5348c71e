"""The `.npz` files of MedMNIST, of images and of volumes: `{train,val,test}_{images,labels}`.

The images of a split are unpacked when the first of them is asked for, and stay in memory: the
files are compressed as a whole. An image is named by a path below the file, `FILE/train/000012`.
"""

from __future__ import annotations

import math
import threading
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from rdcache.data.decoding import UnreadableImageError
from rdcache.data.listing import stamp_file
from rdcache.errors import DatasetError
from rdcache.memory import memory_limit
from rdcache.store import SPLITS

DIGITS = 6
FILES_IN_MEMORY = 2
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)
NEXT = "get the file again: zenodo.org/records/10519652"


@dataclass(frozen=True)
class NpzSplit:
    """One split of a file, without its images.

    Attributes:
        shape: of one image, as it is stored: (H, W), (H, W, 3), or (D, H, W).
        labels: int64 (N, L).
    """

    shape: tuple[int, ...]
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


def read_splits(file: Path) -> dict[str, NpzSplit]:
    """What a file holds, split by split; its images are not unpacked.

    Raises:
        DatasetError: it is no such file, damaged, or its arrays contradict each other.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return {split: _split(archive, split) for split in SPLITS}
    except DAMAGED as error:
        raise DatasetError(
            "this is no file of MedMNIST, or it is damaged.",
            file=file,
            why=f"it lacks {error}" if isinstance(error, KeyError) else error,
            expected="arrays train_images, train_labels, val_…, test_…",
            next=NEXT,
        ) from None


def require_memory(file: Path, splits: Mapping[str, NpzSplit]) -> None:
    """Refuse a file whose images this machine cannot hold.

    Raises:
        DatasetError: it has not the memory.
    """
    needed = sum(len(part) * math.prod(part.shape) for part in splits.values())
    if needed > memory_limit():
        raise DatasetError(
            "the images of this file do not fit into memory.",
            file=file,
            needed=f"{needed / 1e9:.1f} GB",
            next="take a smaller size of the same set, such as …_64",
        )


def image_path(file: Path, split: str, number: int) -> Path:
    """The path by which one image is known."""
    return file / split / f"{number:0{DIGITS}}"


def read_image(path: Path) -> np.ndarray:
    """One image, by its path: uint8, as it is stored.

    Raises:
        UnreadableImageError: the file has fewer images than it had.
        DatasetError: it is gone or damaged.
    """
    file, split, number = path.parents[1], path.parent.name, int(path.name)
    with _lock:  # or two threads would unpack the same file
        images = _unpacked(file, split, stamp_file(file))
    if number >= len(images):
        raise UnreadableImageError(f"it has only {len(images)} images in {split}")
    return np.array(images[number])


def stamp_image(path: Path) -> tuple[int, int]:
    """The stamp of the file that an image lies in."""
    return stamp_file(path.parents[1])


_lock = threading.Lock()


@lru_cache(maxsize=FILES_IN_MEMORY * len(SPLITS))
def _unpacked(file: Path, split: str, stamp: tuple[int, int]) -> np.ndarray:
    """All images of a split: uint8 (N, …). A file that has changed has another stamp."""
    try:
        with zipfile.ZipFile(file) as archive:
            name = f"{split}_images.npy"
            with archive.open(name) as stream:
                images = np.lib.format.read_array(stream, allow_pickle=False)
    except DAMAGED as error:
        # Not the fault of one image: it is said once, and not tried again for each.
        raise DatasetError(
            "the images of this file cannot be unpacked.",
            file=file,
            array=f"{split}_images",
            why=error,
            next=NEXT,
        ) from None
    return np.asarray(images)


def _split(archive: zipfile.ZipFile, split: str) -> NpzSplit:
    with archive.open(f"{split}_labels.npy") as stream:
        labels = np.lib.format.read_array(stream, allow_pickle=False)
    with archive.open(f"{split}_images.npy") as stream:
        shape, dtype = _header(stream)
    if dtype != np.uint8 or len(shape) not in (3, 4):
        raise ValueError(f"{split}_images is {dtype} {shape}")
    if labels.dtype.kind not in "iu" or labels.ndim not in (1, 2) or len(labels) != shape[0]:
        raise ValueError(f"{split}_labels is {labels.dtype} {labels.shape}, of {shape[0]} images")
    return NpzSplit(tuple(shape[1:]), labels.reshape(len(labels), -1).astype(np.int64))


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape and dtype of an array, without its numbers."""
    version = np.lib.format.read_magic(stream)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(stream)
    return shape, dtype
