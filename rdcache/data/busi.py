"""BUSI: breast ultrasound, one folder a class, masks beside the images.

As a segmentation, `busi-seg` has all 780 images: those of the class `normal` have empty masks, on
which a student must find nothing. `busi-seg-lesions` leaves them out, as most papers do.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from rdcache.data.listing import Entry, Listing, entries_of_folders, first_folder
from rdcache.data.masks import BACKGROUND, masks_above
from rdcache.data.registry import register

CLASSES = ("benign", "malignant", "normal")
LESIONS = ("benign", "malignant")
SEGMENTED = (BACKGROUND, "lesion")
MASK = re.compile(r"(?P<image>.+)_mask(_\d+)?")
SPLIT = "none official: 4:1"
LICENCE = "CC BY 4.0"
SOURCE = "Kaggle, aryashah2k/breast-ultrasound-images-dataset"
FOLDERS = ("busi", "BUSI", "Dataset_BUSI_with_GT")
LAYOUT = "benign/benign (1).png, benign/benign (1)_mask.png, malignant/…, normal/…"


@register(
    "busi",
    title="BUSI, breast ultrasound",
    classes=CLASSES,
    split=SPLIT,
    symmetry="hflip",
    licence=LICENCE,
    source=SOURCE,
    folders=FOLDERS,
    layout=LAYOUT,
)
def list_busi(folder: Path) -> Listing:
    """Every image that is no mask."""
    folder = first_folder(folder, ["Dataset_BUSI_with_GT"]) or folder
    entries = entries_of_folders(folder, folder, CLASSES)
    return Listing(tuple(entry for entry in entries if "_mask" not in entry.path.stem), CLASSES)


@register(
    "busi-seg",
    title="BUSI, lesions segmented; normal images have empty masks",
    classes=SEGMENTED,
    split=SPLIT,
    symmetry="hflip",
    licence=LICENCE,
    source=SOURCE,
    folders=FOLDERS,
    layout=LAYOUT,
    task="segmentation",
)
def list_busi_masks(folder: Path) -> Listing:
    """Every image with the union of its masks, balanced by class when splits are drawn."""
    return _with_masks(folder, CLASSES)


@register(
    "busi-seg-lesions",
    title="BUSI, lesions segmented; without normal images",
    classes=SEGMENTED,
    split=SPLIT,
    symmetry="hflip",
    licence=LICENCE,
    source=SOURCE,
    folders=FOLDERS,
    layout=LAYOUT,
    task="segmentation",
)
def list_busi_lesions(folder: Path) -> Listing:
    """The same without the class `normal`."""
    return _with_masks(folder, LESIONS)


def _with_masks(folder: Path, classes: tuple[str, ...]) -> Listing:
    folder = first_folder(folder, ["Dataset_BUSI_with_GT"]) or folder
    images: list[Entry] = []
    masks: dict[str, list[Path]] = {}
    for entry in entries_of_folders(folder, folder, classes):
        if match := MASK.fullmatch(entry.path.stem):
            masks.setdefault(f"{entry.path.parent.name}/{match['image']}", []).append(entry.path)
        else:
            images.append(entry)
    entries: list[Entry] = []
    missing: list[tuple[str, str]] = []
    for entry in images:
        own = masks.get(f"{entry.path.parent.name}/{entry.path.stem}")
        if own is None:
            missing.append((entry.name, "it has no mask"))
        else:
            entries.append(replace(entry, masks=tuple(own)))
    return Listing(
        tuple(entries),
        SEGMENTED,
        tuple(missing),
        task="segmentation",
        read_mask=masks_above(0),
    )
