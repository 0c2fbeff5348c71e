"""`folder:PATH`: any tree with one folder a class, with or without split folders above them; or a
folder of images beside a folder of their masks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from rdcache.data.listing import Entry, Listing, entries_of_folders, image_files
from rdcache.data.masks import declared_classes, masks_of
from rdcache.data.pairs import paired
from rdcache.errors import DatasetError

SPLIT_FOLDERS = {
    "train": ("train", "training", "Train", "Training"),
    "val": ("val", "valid", "validation", "Val", "Validation"),
    "test": ("test", "testing", "Test", "Testing"),
}
HIDDEN = (".", "__")
BESIDE = "beside the class folders, in none of them"
BELOW = "in a subfolder that is no class"
IMAGES, MASKS = "images", "masks"
LAYOUT = (
    "CLASS/*.png, or train/CLASS/*.png, test/CLASS/*.png (and val/CLASS/*.png); with masks: "
    "images/*.png, masks/*.png, or train/images/*.png, train/masks/*.png, … (and classes.txt)"
)


def list_folders(folder: Path) -> Listing:
    """Classes are the names of the folders that hold images, sorted.

    Images elsewhere below the folder have no class; they are listed as missing. Where a folder
    `masks` lies beside a folder `images`, these are to be segmented.

    Raises:
        DatasetError: two folders are there for one split, or class names that are none.
    """
    by_split = split_folders(folder)
    places: list[tuple[str | None, Path]] = list(by_split.items()) or [(None, folder)]
    if any(has_masks(top) for _, top in places):
        return _list_pairs(folder, places)
    tops = list(by_split.values()) or [folder]
    classes = tuple(
        sorted({sub.name for top in tops for sub in top.iterdir() if _is_class_folder(sub)})
    )
    entries: list[Entry] = []
    for split, top in by_split.items():
        entries += entries_of_folders(folder, top, classes, split)
    if not by_split:
        entries = entries_of_folders(folder, folder, classes)
    listed = {entry.path for entry in entries}
    missing = tuple(
        (path.relative_to(folder).as_posix(), BESIDE if path.parent in tops else BELOW)
        for path in _images_below(folder)
        if path not in listed
    )
    return Listing(tuple(entries), classes, missing)


def has_masks(folder: Path) -> bool:
    """Whether images lie here beside their masks."""
    return (folder / IMAGES).is_dir() and (folder / MASKS).is_dir()


def _list_pairs(folder: Path, tops: list[tuple[str | None, Path]]) -> Listing:
    """Images with masks; the classes are those of `classes.txt`."""
    classes = declared_classes(folder)
    entries: list[Entry] = []
    missing: list[tuple[str, str]] = []
    for split, top in tops:
        found, alone = paired(folder, top / IMAGES, top / MASKS, split)
        entries += found
        missing += alone
    return Listing(
        tuple(entries),
        classes,
        tuple(missing),
        task="segmentation",
        read_mask=masks_of(len(classes)),
    )


def split_folders(folder: Path) -> dict[str, Path]:
    """Split → its folder; none without a training folder, as a class may be called `test`."""
    # Names as they are written on disk: where case does not count, `Train` is `train`.
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    found = {
        split: [name for name in known if name in names] for split, known in SPLIT_FOLDERS.items()
    }
    if not found["train"]:
        return {}
    for split, same in found.items():
        if len(same) > 1:
            raise DatasetError(
                f"there are two folders for the {split} split.",
                folder=folder,
                found=", ".join(same),
                next="merge them, or move one of them away",
            )
    return {split: folder / same[0] for split, same in found.items() if same}


def _images_below(folder: Path) -> Iterator[Path]:
    """Image files at any depth, except in hidden folders."""
    for place, subfolders, _ in os.walk(folder):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith(HIDDEN))
        yield from image_files(Path(place))


def _is_class_folder(folder: Path) -> bool:
    hidden = folder.name.startswith(HIDDEN)
    return folder.is_dir() and not hidden and bool(image_files(folder))
