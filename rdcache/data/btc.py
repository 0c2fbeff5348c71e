"""BTC: brain tumour MRI, official Training and Testing folders."""

from __future__ import annotations

from pathlib import Path

from rdcache.data.listing import Listing, entries_of_folders
from rdcache.data.registry import register

CLASSES = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
FOLDERS = {"train": "Training", "test": "Testing"}


@register(
    "btc",
    title="BTC, brain tumour MRI",
    classes=CLASSES,
    split="official train and test",
    symmetry="hflip",
    licence="MIT (as stated on Kaggle)",
    source="Kaggle, sartajbhuvaji/brain-tumor-classification-mri",
    folders=("btc", "BTC", "brain-tumor-classification-mri"),
    layout="Training/{glioma,meningioma,no,pituitary}_tumor/*.jpg, Testing/…",
)
def list_btc(folder: Path) -> Listing:
    """The two official folders."""
    entries = [
        entry
        for split, name in FOLDERS.items()
        for entry in entries_of_folders(folder, folder / name, CLASSES, split)
    ]
    return Listing(tuple(entries), CLASSES, official=FOLDERS)
