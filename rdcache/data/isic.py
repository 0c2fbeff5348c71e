"""ISIC 2018 task 3, skin lesions: the challenge's own folders, or HAM10000 as it is distributed."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rdcache.data.listing import Entry, Listing, first_folder, image_files
from rdcache.data.registry import register

CLASSES = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")
SPLIT_NAMES = {"train": "Training", "val": "Validation", "test": "Test"}
METADATA = ("HAM10000_metadata.csv", "HAM10000_metadata")
IMAGE_FOLDERS = (
    "images",
    "HAM10000_images_part_1",
    "HAM10000_images_part_2",
    "ham10000_images_part_1",
    "ham10000_images_part_2",
)


@register(
    "isic",
    title="ISIC 2018 task 3 / HAM10000, dermoscopy",
    classes=CLASSES,
    split="official, or 4:1 by lesion for HAM10000 alone",
    symmetry="d4",
    licence="CC BY-NC 4.0",
    source="challenge.isic-archive.com (2018, task 3), or Harvard Dataverse DBW86T (HAM10000)",
    folders=("isic", "ISIC2018", "isic2018", "ham10000", "HAM10000"),
    layout="ISIC2018_Task3_{Training,Validation,Test}_Input/*.jpg and "
    "…_GroundTruth/…_GroundTruth.csv (and ISIC2018_Task3_Training_LesionGroupings.csv); or "
    "HAM10000_images_part_{1,2}/*.jpg and HAM10000_metadata.csv",
)
def list_isic(folder: Path) -> Listing:
    """The challenge's layout if its training folder is there, else HAM10000's."""
    if (folder / "ISIC2018_Task3_Training_Input").is_dir():
        return _challenge(folder)
    return _ham10000(folder)


def _challenge(folder: Path) -> Listing:
    lesions = _lesions(folder)
    entries: list[Entry] = []
    missing: list[tuple[str, str]] = []
    for split, title in SPLIT_NAMES.items():
        stem = f"ISIC2018_Task3_{title}"
        truth = next((folder / f"{stem}_GroundTruth").glob("*.csv"), None)
        if truth is None:
            continue
        files = {path.stem: path for path in image_files(folder / f"{stem}_Input")}
        table = pd.read_csv(truth)
        labels = table[list(CLASSES)].to_numpy().argmax(axis=1)
        for image, label in zip(table["image"].astype(str), labels, strict=True):
            if image not in files:
                missing.append((image, f"listed in {truth.name}, but no file"))
                continue
            path = files[image]
            name = path.relative_to(folder).as_posix()
            entries.append(Entry(path, name, int(label), split, lesions.get(image)))
    return Listing(tuple(entries), CLASSES, tuple(missing))


def _lesions(folder: Path) -> dict[str, str]:
    """Image → lesion, where the challenge's table is there."""
    file = next(folder.rglob("ISIC2018_Task3_Training_LesionGroupings.csv"), None)
    if file is None:
        return {}
    table = pd.read_csv(file, dtype=str)
    return dict(zip(table["image"], table["lesion_id"], strict=True))


def _ham10000(folder: Path) -> Listing:
    metadata = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if metadata is None:
        return Listing((), CLASSES)
    folders = [found for name in IMAGE_FOLDERS if (found := first_folder(folder, [name]))]
    files = {path.stem: path for found in (*folders, folder) for path in image_files(found)}
    table = pd.read_csv(metadata, dtype=str).drop_duplicates("image_id")
    entries: list[Entry] = []
    missing: list[tuple[str, str]] = []
    for image, lesion, diagnosis in table[["image_id", "lesion_id", "dx"]].itertuples(index=False):
        if image in files:
            name = files[image].relative_to(folder).as_posix()
            label = CLASSES.index(diagnosis.upper())
            entries.append(Entry(files[image], name, label, None, lesion))
        else:
            missing.append((image, f"listed in {metadata.name}, but no file"))
    return Listing(tuple(entries), CLASSES, tuple(missing))
