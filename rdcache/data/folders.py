"""`folder:PATH`: any tree with one folder a class, with or without split folders above them."""

from __future__ import annotations

from pathlib import Path

from rdcache.data.listing import Entry, Listing, entries_of_folders, image_files

SPLIT_FOLDERS = {
    "train": ("train", "training", "Train", "Training"),
    "val": ("val", "valid", "validation", "Val", "Validation"),
    "test": ("test", "testing", "Test", "Testing"),
}
LAYOUT = "CLASS/*.png, or train/CLASS/*.png, test/CLASS/*.png (and val/CLASS/*.png)"


def list_folders(folder: Path) -> Listing:
    """Classes are the names of the folders that hold images, sorted."""
    by_split = {
        split: folder / name
        for split, names in SPLIT_FOLDERS.items()
        for name in names
        if (folder / name).is_dir()
    }
    if "train" not in by_split:
        by_split = {}
    tops = list(by_split.values()) or [folder]
    classes = tuple(
        sorted({sub.name for top in tops for sub in top.iterdir() if _is_class_folder(sub)})
    )
    entries: list[Entry] = []
    for split, top in by_split.items():
        entries += entries_of_folders(folder, top, classes, split)
    if not by_split:
        entries = entries_of_folders(folder, folder, classes)
    return Listing(tuple(entries), classes)


def _is_class_folder(folder: Path) -> bool:
    hidden = folder.name.startswith((".", "__"))
    return folder.is_dir() and not hidden and bool(image_files(folder))
