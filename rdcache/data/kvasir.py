"""Kvasir-SEG: polyps in colonoscopy; the masks are JPEG, so that their edges are grey."""

from __future__ import annotations

from pathlib import Path

from rdcache.data.listing import Listing
from rdcache.data.masks import BACKGROUND, HALF, masks_above
from rdcache.data.pairs import paired
from rdcache.data.registry import register

CLASSES = (BACKGROUND, "polyp")


@register(
    "kvasir-seg",
    title="Kvasir-SEG, polyps in colonoscopy",
    classes=CLASSES,
    split="none official: 4:1",
    symmetry="d4",
    licence="research and education only",
    source="datasets.simula.no/kvasir-seg",
    folders=("kvasir-seg", "Kvasir-SEG", "kvasir_seg"),
    layout="images/*.jpg, masks/*.jpg of the same names",
    task="segmentation",
)
def list_kvasir(folder: Path) -> Listing:
    """A mask of the same name for each image."""
    entries, alone = paired(folder, folder / "images", folder / "masks")
    return Listing(
        tuple(entries), CLASSES, tuple(alone), task="segmentation", read_mask=masks_above(HALF)
    )
