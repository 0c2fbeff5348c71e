"""ChestXray: four classes, official folders; one class is misspelt at the source."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from rdcache.data.listing import Listing, entries_of_folders
from rdcache.data.registry import register
from rdcache.store import SPLITS

CLASSES = ("COVID19", "NORMAL", "PNEUMONIA", "TURBERCULOSIS")  # sic

# Pneumonia files are called person1949_bacteria_4880.jpeg; bacterial and viral cases are numbered
# apart. The other classes' names tell no patient.
PATIENT = re.compile(r"person\d+_(?:bacteria|virus)(?=_)")


@register(
    "chestxray",
    title="ChestXray, pneumonia / COVID-19 / tuberculosis",
    classes=CLASSES,
    split="official (validation of 38 images, topped up from train)",
    symmetry="none",
    licence="see its Kaggle page",
    source="Kaggle, jtiptj/chest-xray-pneumoniacovid19tuberculosis",
    folders=("chestxray", "chest-xray-pneumoniacovid19tuberculosis"),
    layout="{train,val,test}/{COVID19,NORMAL,PNEUMONIA,TURBERCULOSIS}/*",
)
def list_chestxray(folder: Path) -> Listing:
    """The three official folders, grouped by patient where file names tell one."""
    return Listing(
        tuple(
            replace(entry, group=match[0]) if (match := PATIENT.match(entry.path.name)) else entry
            for split in SPLITS
            for entry in entries_of_folders(folder, folder / split, CLASSES, split)
        ),
        CLASSES,
        official={split: split for split in SPLITS},
    )
