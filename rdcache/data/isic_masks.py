"""ISIC 2018 task 1: lesion boundaries in dermoscopy, the challenge's own folders and splits."""

from __future__ import annotations

from pathlib import Path

from rdcache.data.listing import Entry, Listing
from rdcache.data.masks import BACKGROUND, HALF, masks_above
from rdcache.data.pairs import paired
from rdcache.data.registry import register

CLASSES = (BACKGROUND, "lesion")
SPLIT_NAMES = {"train": "Training", "val": "Validation", "test": "Test"}
# Superpixels of task 2 lie among the images; they are none.
SUPERPIXELS = "_superpixels"
ENDINGS = ("_segmentation",)


@register(
    "isic-seg",
    title="ISIC 2018 task 1, lesion boundaries in dermoscopy",
    classes=CLASSES,
    split="official",
    symmetry="d4",
    licence="CC BY-NC 4.0",
    source="challenge.isic-archive.com (2018, task 1)",
    folders=("isic-seg", "ISIC2018_Task1", "isic", "ISIC2018", "isic2018"),
    layout="ISIC2018_Task1-2_{Training,Validation,Test}_Input/*.jpg and "
    "ISIC2018_Task1_{Training,Validation,Test}_GroundTruth/*_segmentation.png",
    task="segmentation",
)
def list_isic_masks(folder: Path) -> Listing:
    """Every image of the three official folders with its mask."""
    entries: list[Entry] = []
    missing: list[tuple[str, str]] = []
    official: dict[str, str] = {}
    for split, title in SPLIT_NAMES.items():
        images = f"ISIC2018_Task1-2_{title}_Input"
        masks = f"ISIC2018_Task1_{title}_GroundTruth"
        official[split] = images if not (folder / images).is_dir() else masks
        found, alone = paired(folder, folder / images, folder / masks, split, ENDINGS)
        entries += found
        missing += [each for each in alone if SUPERPIXELS not in each[0]]
    return Listing(
        tuple(entries),
        CLASSES,
        tuple(missing),
        official,
        task="segmentation",
        read_mask=masks_above(HALF),
    )
