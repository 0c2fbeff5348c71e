"""FIVES: vessels in fundus photographs of 2048×2048 pixels, official train and test."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from rdcache.data.listing import Entry, Listing
from rdcache.data.masks import BACKGROUND, HALF, masks_above
from rdcache.data.pairs import paired
from rdcache.data.registry import register

CLASSES = (BACKGROUND, "vessel")
SPLIT_FOLDERS = {"train": "train", "test": "test"}
# 12_A.png: macular degeneration, diabetic retinopathy, glaucoma, normal.
DISEASE = re.compile(r"\d+_(?P<letter>[ADGN])")


@register(
    "fives",
    title="FIVES, vessels in fundus photographs",
    classes=CLASSES,
    split="official train and test",
    symmetry="d4",
    licence="CC BY 4.0",
    source="figshare 19688169 (Jin et al., Scientific Data 2022)",
    folders=("fives", "FIVES", "FIVES A Fundus Image Dataset for AI-based Vessel Segmentation"),
    layout="train/Original/*.png, train/Ground truth/*.png, test/…",
    task="segmentation",
)
def list_fives(folder: Path) -> Listing:
    """The two official folders, balanced by disease where validation images are drawn."""
    entries: list[Entry] = []
    alone: list[tuple[str, str]] = []
    for split, name in SPLIT_FOLDERS.items():
        place = folder / name
        found, missing = paired(folder, place / "Original", place / "Ground truth", split)
        entries += [replace(entry, label=_stratum(entry)) for entry in found]
        alone += missing
    return Listing(
        tuple(entries),
        CLASSES,
        tuple(alone),
        SPLIT_FOLDERS,
        task="segmentation",
        read_mask=masks_above(HALF),
    )


def _stratum(entry: Entry) -> int:
    match = DISEASE.fullmatch(entry.path.stem)
    return "ADGN".index(match["letter"]) if match else 0
