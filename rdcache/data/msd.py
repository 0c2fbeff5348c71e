"""`msd:TASK`: tasks of the Medical Segmentation Decathlon, and folders that are laid out like them.

Classes and modality are read from `dataset.json`. The published test volumes have no masks, so all
splits are drawn here.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from rdcache.data.listing import Entry, Listing
from rdcache.data.masks import BACKGROUND
from rdcache.data.volume_files import (
    is_volume,
    open_volume,
    read_volume,
    stamp_volume,
    volume_stem,
)
from rdcache.data.volume_masks import class_numbers, volume_masks
from rdcache.errors import DatasetError

LAYOUT = "dataset.json, imagesTr/CASE.nii.gz, labelsTr/CASE.nii.gz"
# Hounsfield units. Soft tissue of the abdomen, as MONAI's recipes for these sets have it; lungs.
ABDOMEN, LUNGS = (-175.0, 250.0), (-1000.0, 400.0)


def list_task(folder: Path) -> Listing:
    """Every volume of `imagesTr` that has a mask; nothing without a `dataset.json`.

    Raises:
        DatasetError: the `dataset.json` makes no sense.
    """
    about = folder / "dataset.json"
    if not about.is_file():
        return Listing((), ())
    facts = _read(about)
    numbers = _class_names(facts, about)
    classes = (BACKGROUND, *(name for number, name in sorted(numbers.items()) if number))
    order = {number: place for place, number in enumerate(sorted(numbers))}
    return list_pairs(folder, "imagesTr", "labelsTr", classes, order, window_of(facts, folder.name))


def list_pairs(
    folder: Path,
    images: str,
    masks: str,
    classes: tuple[str, ...],
    numbers: dict[int, int],
    window: tuple[float, float] | None,
    mask_name: tuple[str, str] = ("", ""),
) -> Listing:
    """Volumes of one folder with masks of another.

    Args:
        numbers: in the files → class number.
        mask_name: what of an image's name is replaced in that of its mask, and by what.
    """
    by_stem = {volume_stem(path): path for path in volumes_in(folder / masks)}
    entries, missing = [], []
    for path in volumes_in(folder / images):
        name = path.relative_to(folder).as_posix()
        mask = by_stem.get(volume_stem(path).replace(*mask_name))
        if mask is None:
            missing.append((name, f"it has no mask in {masks}"))
        else:
            entries.append(Entry(path, name, 0, masks=(mask,)))
    return volume_listing(entries, classes, numbers, window, missing)


def volume_listing(
    entries: list[Entry],
    classes: tuple[str, ...],
    numbers: dict[int, int],
    window: tuple[float, float] | None,
    missing: list[tuple[str, str]],
    **official: Any,
) -> Listing:
    """A listing of volumes with masks.

    Args:
        numbers: in the mask files → class number.
    """
    return Listing(
        tuple(entries),
        classes,
        tuple(missing),
        open=lambda entry: open_volume(entry.path, window),
        read=partial(read_volume, window=window),
        stamp=stamp_volume,
        task="segmentation",
        dimensions=3,
        read_mask=volume_masks(class_numbers(numbers)),
        window=window,
        **official,
    )


def volumes_in(folder: Path) -> list[Path]:
    """Volumes directly in a folder, sorted; macOS's `._*` left out."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_volume(path))


def window_of(facts: dict[str, Any], name: str) -> tuple[float, float] | None:
    """The window of a task: of CT alone; other modalities have a range for each volume."""
    modality = facts.get("modality")
    found = list(modality.values()) if isinstance(modality, dict) else [modality]
    if {str(each).upper() for each in found} != {"CT"}:
        return None
    return LUNGS if "lung" in name.lower() else ABDOMEN


def _read(about: Path) -> dict[str, Any]:
    try:
        facts = json.loads(about.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DatasetError("the dataset.json cannot be read.", file=about, why=error) from None
    if not isinstance(facts, dict):
        raise DatasetError("the dataset.json holds no facts.", file=about, expected=LAYOUT)
    return facts


def _class_names(facts: dict[str, Any], about: Path) -> dict[int, str]:
    """Number in the masks → name."""
    labels = facts.get("labels")
    try:
        assert isinstance(labels, dict)
        names = {int(number): str(name) for number, name in labels.items()}
    except (AssertionError, ValueError):
        names = {}
    if 0 not in names or len(names) < 2 or min(names) < 0 or max(names) > 255:
        raise DatasetError(
            "the dataset.json does not name the classes of the masks.",
            file=about,
            found=str(labels)[:200],
            expected='"labels": {"0": "background", "1": NAME, …}',
        )
    return names
