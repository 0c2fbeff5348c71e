"""ACDC: right ventricle, myocardium and left ventricle in cardiac MRI, at two moments of the beat.

Both frames of a patient belong in one split. Splits that are drawn here are balanced by the
patient's diagnosis, which `Info.cfg` tells.
"""

from __future__ import annotations

from pathlib import Path

from rdcache.data.listing import Entry, Listing, first_folder
from rdcache.data.masks import BACKGROUND
from rdcache.data.registry import register
from rdcache.data.volume_files import volume_stem
from rdcache.data.volume_folders import as_volume_files, volumes_in

CLASSES = (BACKGROUND, "right ventricle", "myocardium", "left ventricle")
DIAGNOSES = ("NOR", "DCM", "HCM", "MINF", "RV")
SPLITS = {"training": "train", "testing": "test"}


@register(
    "acdc",
    title="ACDC, heart chambers in MRI",
    classes=CLASSES,
    split="official train and test patients",
    symmetry="none",
    licence="research use, on registration",
    source="creatis.insa-lyon.fr/Challenge/acdc",
    folders=("acdc", "ACDC"),
    layout="training/patient001/patient001_frame01.nii.gz, …_frame01_gt.nii.gz, testing/…",
    task="segmentation",
    dimensions=3,
)
def list_frames(folder: Path) -> Listing:
    """Every frame with a mask, of the training and of the test patients."""
    top = first_folder(folder, ["database"]) or folder
    entries: list[Entry] = []
    missing: list[tuple[str, str]] = []
    for place, split in SPLITS.items():
        for patient in sorted((top / place).glob("patient*/")):
            by_stem = {volume_stem(path): path for path in volumes_in(patient)}
            for stem, path in by_stem.items():
                if "_frame" not in stem or stem.endswith("_gt"):
                    continue
                name = path.relative_to(folder).as_posix()
                if (mask := by_stem.get(f"{stem}_gt")) is None:
                    missing.append((name, "it has no mask beside it"))
                    continue
                label = _diagnosis(patient / "Info.cfg")
                entries.append(Entry(path, name, label, split, patient.name, (mask,)))
    return as_volume_files(
        Listing(
            tuple(entries),
            CLASSES,
            tuple(missing),
            official={split: place for place, split in SPLITS.items()},
            task="segmentation",
        )
    )


def _diagnosis(file: Path) -> int:
    """The number of the diagnosis; 0 where the file does not tell."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    words = [line.partition(":")[2].strip() for line in lines if line.startswith("Group")]
    return DIAGNOSES.index(words[0]) if words and words[0] in DIAGNOSES else 0
