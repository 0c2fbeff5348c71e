"""BTCV: thirteen organs in abdominal CT, and the gallbladder alone, as one of DRD's tasks has it.

The masks of the challenge's test scans were never published: all splits are drawn here from the
thirty training scans.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from rdcache.data.listing import Listing, first_folder
from rdcache.data.masks import BACKGROUND
from rdcache.data.msd import ABDOMEN, segmented_volumes
from rdcache.data.registry import register
from rdcache.data.volume_folders import pairs_of_volumes

ORGANS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal and splenic veins",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)


def list_organs(organs: tuple[str, ...], folder: Path) -> Listing:
    """The scans of `Training/img` with their masks; organs not asked for are background."""
    training = first_folder(folder, ["RawData/Training", "Training"]) or folder
    numbers = {
        number: organs.index(name) + 1 if name in organs else 0
        for number, name in enumerate((BACKGROUND, *ORGANS))
    }
    entries, alone = pairs_of_volumes(
        folder, training / "img", training / "label", mask_stems=[("img", "label")]
    )
    listing = Listing(tuple(entries), (BACKGROUND, *organs), tuple(alone))
    return segmented_volumes(listing, numbers, ABDOMEN)


for _name, _title, _organs in (
    ("btcv", "BTCV, thirteen abdominal organs in CT", ORGANS),
    ("btcv-gallbladder", "BTCV, the gallbladder in CT", ("gallbladder",)),
):
    register(
        _name,
        title=_title,
        classes=(BACKGROUND, *_organs),
        split="none official: 4:1",
        symmetry="none",  # a mirrored right kidney is no left one
        licence="research use, on registration",
        source="synapse.org, syn3193805",
        folders=("btcv", "BTCV", "RawData"),
        layout="RawData/Training/img/img0001.nii.gz, RawData/Training/label/label0001.nii.gz",
        task="segmentation",
        dimensions=3,
    )(partial(list_organs, _organs))
