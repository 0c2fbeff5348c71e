"""BUSI: breast ultrasound, one folder a class, masks beside the images."""

from __future__ import annotations

from pathlib import Path

from rdcache.data.listing import Listing, entries_of_folders, first_folder
from rdcache.data.registry import register

CLASSES = ("benign", "malignant", "normal")


@register(
    "busi",
    title="BUSI, breast ultrasound",
    classes=CLASSES,
    split="none official: 4:1",
    symmetry="hflip",
    licence="CC BY 4.0",
    source="Kaggle, aryashah2k/breast-ultrasound-images-dataset",
    folders=("busi", "BUSI", "Dataset_BUSI_with_GT"),
    layout="benign/benign (1).png, benign/benign (1)_mask.png, malignant/…, normal/…",
)
def list_busi(folder: Path) -> Listing:
    """Every image that is no mask."""
    folder = first_folder(folder, ["Dataset_BUSI_with_GT"]) or folder
    entries = entries_of_folders(folder, folder, CLASSES)
    return Listing(tuple(entry for entry in entries if "_mask" not in entry.path.stem), CLASSES)
