"""BTC: brain tumour MRI, official Training and Testing folders."""

from __future__ import annotations

from pathlib import Path

from rdcache.data.listing import Listing, entries_of_folders
from rdcache.data.registry import register

CLASSES = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")


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
    training = entries_of_folders(folder, folder / "Training", CLASSES, "train")
    testing = entries_of_folders(folder, folder / "Testing", CLASSES, "test")
    return Listing((*training, *testing), CLASSES)
