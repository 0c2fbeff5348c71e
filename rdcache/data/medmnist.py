"""MedMNIST v2 in two dimensions: twelve sets of small images with official splits.

Each set is one `.npz` file, of 28×28 pixels, or of 64, 128 or 224 with the size in its name:
`pneumoniamnist`, `pneumoniamnist_64`, and so on. The sets of volumes are in
`medmnist_volumes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from rdcache.data.leaks import Label
from rdcache.data.listing import Entry, Listing
from rdcache.data.medmnist_files import (
    NpzSplit,
    image_path,
    read_image,
    read_splits,
    require_memory,
    stamp_image,
)
from rdcache.data.registry import register
from rdcache.data.samples import Symmetry, Task
from rdcache.errors import DatasetError

SIZES = ("", "_64", "_128", "_224")
SOURCE = "zenodo.org/records/10519652, or `pip install medmnist`"
SPLIT = "official train, val and test"
ORGANS = (
    "bladder",
    "femur-left",
    "femur-right",
    "heart",
    "kidney-left",
    "kidney-right",
    "liver",
    "lung-left",
    "lung-right",
    "pancreas",
    "spleen",
)


@dataclass(frozen=True)
class MedmnistSet:
    """One set of the collection.

    Attributes:
        title: what the images show, and what to know before using them.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    symmetry: Symmetry
    licence: str = "CC BY 4.0"
    task: Task = "multiclass"


SETS = (
    MedmnistSet(
        "pathmnist",
        "PathMNIST, colon tissue (test from another centre)",
        (
            "adipose",
            "background",
            "debris",
            "lymphocytes",
            "mucus",
            "smooth muscle",
            "normal colon mucosa",
            "cancer-associated stroma",
            "colorectal adenocarcinoma epithelium",
        ),
        "d4",
    ),
    MedmnistSet(
        "chestmnist",
        "ChestMNIST, 14 findings in chest X-rays (NIH ChestX-ray14)",
        (
            "atelectasis",
            "cardiomegaly",
            "effusion",
            "infiltration",
            "mass",
            "nodule",
            "pneumonia",
            "pneumothorax",
            "consolidation",
            "edema",
            "emphysema",
            "fibrosis",
            "pleural",
            "hernia",
        ),
        "none",
        task="multilabel",
    ),
    MedmnistSet(
        "dermamnist",
        "DermaMNIST, skin lesions: HAM10000, one lesion lies in several splits",
        (
            "actinic keratoses and intraepithelial carcinoma",
            "basal cell carcinoma",
            "benign keratosis-like lesions",
            "dermatofibroma",
            "melanoma",
            "melanocytic nevi",
            "vascular lesions",
        ),
        "d4",
        licence="CC BY-NC 4.0",
    ),
    MedmnistSet(
        "octmnist",
        "OCTMNIST, retinal OCT",
        ("choroidal neovascularization", "diabetic macular edema", "drusen", "normal"),
        "hflip",
    ),
    MedmnistSet(
        "pneumoniamnist",
        "PneumoniaMNIST, chest X-rays of children",
        ("normal", "pneumonia"),
        "none",
    ),
    MedmnistSet(
        "retinamnist",
        "RetinaMNIST, five grades of diabetic retinopathy (DeepDRiD)",
        ("0", "1", "2", "3", "4"),
        "d4",
    ),
    MedmnistSet(
        "breastmnist",
        "BreastMNIST, breast ultrasound: the images of BUSI, in two classes",
        ("malignant", "normal, benign"),
        "hflip",
    ),
    MedmnistSet(
        "bloodmnist",
        "BloodMNIST, blood cells",
        (
            "basophil",
            "eosinophil",
            "erythroblast",
            "immature granulocytes",
            "lymphocyte",
            "monocyte",
            "neutrophil",
            "platelet",
        ),
        "d4",
    ),
    MedmnistSet(
        "tissuemnist",
        "TissueMNIST, cells of the kidney cortex (BBBC051)",
        (
            "Collecting Duct, Connecting Tubule",
            "Distal Convoluted Tubule",
            "Glomerular endothelial cells",
            "Interstitial endothelial cells",
            "Leukocytes",
            "Podocytes",
            "Proximal Tubule Segments",
            "Thick Ascending Limb",
        ),
        "d4",
    ),
    MedmnistSet("organamnist", "OrganAMNIST, organs in axial CT (LiTS)", ORGANS, "none"),
    MedmnistSet("organcmnist", "OrganCMNIST, organs in coronal CT (LiTS)", ORGANS, "none"),
    MedmnistSet("organsmnist", "OrganSMNIST, organs in sagittal CT (LiTS)", ORGANS, "none"),
)


def places(name: str) -> tuple[str, ...]:
    """Where the file of a set is looked for: the data folder, then that of `medmnist` itself."""
    return f"medmnist/{name}.npz", f"~/.medmnist/{name}.npz"


def list_images(the_set: MedmnistSet, file: Path) -> Listing:
    """Every image of a file, in its official split.

    Raises:
        DatasetError: it is no such file, or not of this set.
    """
    splits = read_splits(file)
    for split, part in splits.items():
        if len(part.shape) == 3 and part.shape[2] != 3:
            raise DatasetError(
                f"this file is not of {the_set.name}: it holds no images.",
                file=file,
                found=f"{split}: {len(part)} of {'×'.join(map(str, part.shape))}",
            )
    require_memory(file, splits)
    entries = entries_of(file, splits, the_set.classes, the_set.task)
    return Listing(
        tuple(entries),
        the_set.classes,
        official={split: f"{split}_images" for split in splits},
        open=_open,
        read=_read,
        stamp=stamp_image,
        task=the_set.task,
    )


def entries_of(
    file: Path, splits: dict[str, NpzSplit], classes: Sequence[str], task: Task
) -> Iterator[Entry]:
    """One entry for each image of a file, in its order.

    Raises:
        DatasetError: a label is of no class.
    """
    for split, part in splits.items():
        columns = len(classes) if task == "multilabel" else 1
        highest = 1 if task == "multilabel" else len(classes) - 1
        if part.labels.shape[1] != columns or not _within(part.labels, highest):
            raise DatasetError(
                "the labels of this file are not those of the set that its name says.",
                file=file,
                split=split,
                expected=f"{columns} a sample, from 0 to {highest}",
                found=f"{part.labels.shape[1]} a sample, from {part.labels.min(initial=0)} to "
                f"{part.labels.max(initial=0)}",
            )
        for number, row in enumerate(part.labels.tolist()):
            label: Label = tuple(row) if task == "multilabel" else row[0]
            path = image_path(file, split, number)
            yield Entry(path, f"{split}/{path.name}", label, split)


def _within(labels: np.ndarray, highest: int) -> bool:
    return bool(((labels >= 0) & (labels <= highest)).all())


def _read(path: Path) -> np.ndarray:
    """uint8 (H, W, 3); what is grey has three channels of the same."""
    stored = read_image(path)
    return np.repeat(stored[..., None], 3, axis=2) if stored.ndim == 2 else stored


def _open(entry: Entry) -> tuple[bytes, np.ndarray]:
    pixels = _read(entry.path)
    return pixels.tobytes(), pixels


for _set in SETS:
    for _size in SIZES:
        register(
            _set.name + _size,
            title=_set.title,
            classes=_set.classes,
            split=SPLIT,
            symmetry=_set.symmetry,
            licence=_set.licence,
            source=SOURCE,
            folders=places(_set.name + _size),
            layout=f"the file {_set.name}{_size}.npz",
            task=_set.task,
            few=0,
            variant_of=_set.name if _size else "",
        )(partial(list_images, _set))
