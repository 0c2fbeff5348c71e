"""What an adapter finds in a dataset's folder: files, labels and, where official, splits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rdcache.data.decoding import decode_image
from rdcache.data.leaks import Label
from rdcache.data.samples import Masked, Task

IMAGE_SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm"}
)


@dataclass(frozen=True)
class Entry:
    """One labelled file.

    Attributes:
        name: path relative to the dataset's folder, with `/`; names it in reports.
        split: official split, or None where the dataset has none.
        group: samples that share it belong in one split.
        label: class number; multi-label: 0 or 1 for each class; segmentation: a stratum that drawn
            splits are balanced by, 0 where there is none.
        masks: the files whose union is the mask; none where all of it is background.
    """

    path: Path
    name: str
    label: Label
    split: str | None = None
    group: str | None = None
    masks: tuple[Path, ...] = ()


def open_file(entry: Entry) -> tuple[bytes, np.ndarray]:
    """A file's bytes, and its pixels uint8 (H, W, 3)."""
    data = entry.path.read_bytes()
    return data, decode_image(data)


def read_file(path: Path) -> np.ndarray:
    """A file's pixels: uint8 (H, W, 3)."""
    return decode_image(path.read_bytes())


def stamp_file(path: Path) -> tuple[int, int]:
    """(bytes, modification time in ns): a file with the same stamp is not looked at again."""
    try:
        status = path.stat()
    except (OSError, ValueError):  # a path with a NUL byte is a ValueError
        return -1, -1
    return status.st_size, status.st_mtime_ns


@dataclass(frozen=True)
class Listing:
    """Everything an adapter found.

    Attributes:
        missing: what is left out: names that the dataset's own tables mention, without a file; with
            the reason.
        official: official split → where the dataset keeps it, relative to its folder.
        open, read, stamp: how pixels are had, or a `Volume`; drawn datasets bring their own.
        task: what its labels ask for; the classes of a segmentation begin with `background`.
        dimensions: 2, or 3 for volumes.
        read_mask: gives the mask of an entry or sample, uint8 (H, W) class numbers; segmentation
            only.
        window: the range of intensities that all volumes share, if they do.
        mask_rule: what masks are read by, beside the classes: a look by another rule is not kept.
    """

    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    missing: tuple[tuple[str, str], ...] = ()
    official: Mapping[str, str] = field(default_factory=dict)
    open: Callable[[Entry], tuple[bytes, Any]] = field(default=open_file)
    read: Callable[[Path], Any] = field(default=read_file)
    stamp: Callable[[Path], tuple[int, int]] = field(default=stamp_file)
    task: Task = "multiclass"
    dimensions: int = 2
    read_mask: Callable[[Masked], np.ndarray] | None = None
    window: tuple[float, float] | None = None
    mask_rule: str = ""


def image_files(folder: Path) -> list[Path]:
    """Image files directly in a folder, sorted; hidden ones, such as macOS's `._*`, left out."""
    if not folder.is_dir():
        return []
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def first_folder(folder: Path, names: Iterable[str]) -> Path | None:
    """The first of these subfolders that exists."""
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def entries_of_folders(
    root: Path, folder: Path, classes: Iterable[str], split: str | None = None
) -> list[Entry]:
    """One entry for each image in each class's folder."""
    return [
        Entry(path, path.relative_to(root).as_posix(), label, split)
        for label, name in enumerate(classes)
        for path in image_files(folder / name)
    ]
