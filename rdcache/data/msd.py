"""`msd:TASK`: tasks of the Medical Segmentation Decathlon, and folders that are laid out like them.

Classes and modality are read from `dataset.json`. The published test volumes have no masks, so all
splits are drawn here.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from rdcache.data.listing import Listing
from rdcache.data.masks import BACKGROUND
from rdcache.data.volume_folders import as_volume_files, pairs_of_volumes
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
    entries, alone = pairs_of_volumes(folder, folder / "imagesTr", folder / "labelsTr")
    window = window_of(facts, folder.name)
    return segmented_volumes(Listing(tuple(entries), classes, tuple(alone)), order, window)


def segmented_volumes(
    listing: Listing, numbers: dict[int, int], window: tuple[float, float] | None
) -> Listing:
    """The same listing, of volumes with masks.

    Args:
        numbers: in the mask files → class number.
    """
    volumes = as_volume_files(replace(listing, task="segmentation"), window)
    rule = json.dumps(sorted(numbers.items()))
    return replace(volumes, read_mask=volume_masks(class_numbers(numbers)), mask_rule=rule)


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
