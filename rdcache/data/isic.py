"""ISIC 2018 task 3, skin lesions: the challenge's own folders, or HAM10000 as it is distributed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from rdcache.data.listing import Entry, Listing, first_folder, image_files
from rdcache.data.registry import register
from rdcache.errors import DatasetError

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
    official: dict[str, str] = {}
    for split, title in SPLIT_NAMES.items():
        stem = f"ISIC2018_Task3_{title}"
        files = {path.stem: path for path in image_files(folder / f"{stem}_Input")}
        official[split] = f"{stem}_GroundTruth/{stem}_GroundTruth.csv" if files else f"{stem}_Input"
        truth = _first_file(folder, f"{stem}_GroundTruth.csv", [f"{stem}_GroundTruth", "."])
        if truth is None:
            if files:
                missing.append(
                    (f"{stem}_Input", f"its images have no table ({stem}_GroundTruth.csv)")
                )
            continue
        for image, label in _truth(truth):
            if image not in files:
                missing.append((image, f"listed, but there is no file (in {truth.name})"))
                continue
            path = files[image]
            name = path.relative_to(folder).as_posix()
            entries.append(Entry(path, name, label, split, lesions.get(image)))
    return Listing(tuple(entries), CLASSES, tuple(missing), official)


def _truth(file: Path) -> list[tuple[str, int]]:
    """(image, class number) from a table with one column a class, of which exactly one is 1."""
    table = _read(file, ("image", *CLASSES))
    one_hot = table[list(CLASSES)].apply(pd.to_numeric, errors="coerce").to_numpy()
    wrong = np.flatnonzero(~(((one_hot == 0) | (one_hot == 1)).all(axis=1) & (one_hot.sum(1) == 1)))
    if wrong.size:
        line = int(wrong[0]) + 2  # the first line holds the column names
        raise DatasetError("a row does not name exactly one class.", file=file, line=line)
    return list(zip(table["image"], map(int, one_hot.argmax(axis=1)), strict=True))


def _lesions(folder: Path) -> dict[str, str]:
    """Image → lesion, where the challenge's table is there."""
    places = [".", "ISIC2018_Task3_Training_GroundTruth", "ISIC2018_Task3_Training_LesionGroupings"]
    file = _first_file(folder, "ISIC2018_Task3_Training_LesionGroupings.csv", places)
    if file is None:
        return {}
    table = _read(file, ("image", "lesion_id"))
    return dict(zip(table["image"], table["lesion_id"], strict=True))


def _ham10000(folder: Path) -> Listing:
    metadata = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if metadata is None:
        return Listing((), CLASSES)
    folders = [found for name in IMAGE_FOLDERS if (found := first_folder(folder, [name]))]
    files = {path.stem: path for found in (*folders, folder) for path in image_files(found)}
    table = _read(metadata, ("image_id", "lesion_id", "dx")).drop_duplicates("image_id")
    entries: list[Entry] = []
    missing: list[tuple[str, str]] = []
    for image, lesion, diagnosis in table[["image_id", "lesion_id", "dx"]].itertuples(index=False):
        if diagnosis.upper() not in CLASSES:
            raise DatasetError(
                f"{diagnosis!r} is no diagnosis of this dataset.",
                file=metadata,
                image=image,
                classes=", ".join(CLASSES).lower(),
            )
        if image in files:
            name = files[image].relative_to(folder).as_posix()
            label = CLASSES.index(diagnosis.upper())
            entries.append(Entry(files[image], name, label, None, lesion or None))
        else:
            missing.append((image, f"listed, but there is no file (in {metadata.name})"))
    return Listing(tuple(entries), CLASSES, tuple(missing))


def _first_file(folder: Path, name: str, places: Sequence[str]) -> Path | None:
    return next((folder / sub / name for sub in places if (folder / sub / name).is_file()), None)


def _read(file: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table as text.

    Raises:
        DatasetError: unreadable, or one of these columns is missing.
    """
    try:
        table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:
        raise DatasetError("the table cannot be read.", file=file, why=error) from None
    if absent := [column for column in columns if column not in table.columns]:
        raise DatasetError(
            f"the table has no column {absent[0]!r}.",
            file=file,
            has=", ".join(map(str, table.columns)),
        )
    return table
