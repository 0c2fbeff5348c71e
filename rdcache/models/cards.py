"""What the catalogue says of a teacher before it is loaded, and of the data it was trained on."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rdcache.models.preprocessing import Preprocessing
from rdcache.models.taps import TapNetwork
from rdcache.models.volume_preprocessing import VolumePreprocessing
from rdcache.models.weight_files import Tensors

# Names under which the same images are also distributed.
SAME_IMAGES = {
    "ham10000": "isic",
    "isic2018": "isic",
    "isic2019": "isic",
    "dermamnist": "isic",
    "breastmnist": "busi",
    "chestmnist": "nih-cxr",
    "organamnist": "lits",
    "organcmnist": "lits",
    "organsmnist": "lits",
    "organmnist3d": "lits",
    "patchcamelyon": "pcam",
    "vinbigdata": "vindr",
}

# Public sets in LVM-Med's pretraining corpus (its repository lists them), by rdcache's names.
LVM_MED_CORPORA = frozenset(
    {
        *("isic", "covidx-ct", "kvasir", "hyperkvasir", "msd", "mmwhs", "brats", "lits", "kits"),
        *("pcam", "vindr", "shenzhen", "aptos", "eyepacs"),
    }
)


@dataclass(frozen=True)
class TeacherCard:
    """One entry of the catalogue of teachers.

    Attributes:
        taps: tap name → shape of one sample at the teacher's input size, C first.
        default_tap: the tap that reprogramming starts from.
        input_shape: of one sample at its input: (3, S, S), or (C, D, H, W) of volumes.
        licence: class of the weights' licence.
        weights_present: whether they are there without any download.
        source: where a user gets the weights.
        expected_path: where the file is looked for.
        corpora: datasets whose images the teacher has seen in training, by rdcache's names.
    """

    name: str
    title: str
    taps: Mapping[str, tuple[int, ...]]
    default_tap: str
    input_shape: tuple[int, ...]
    licence: str
    weights_present: bool
    source: str
    expected_path: Path
    corpora: frozenset[str] = frozenset()

    @property
    def input_size(self) -> int:
        """Side of its input along x, in pixels or voxels."""
        return self.input_shape[-1]

    @property
    def dimensions(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.input_shape) - 1


@dataclass(frozen=True)
class TeacherEntry:
    """How the catalogue describes and builds a teacher; one per published model.

    Attributes:
        build: makes the network without weights; its `backbone` is what a weight file must match.
        rename: takes the tensors of a published file to the names and shapes of the network.
        shapes: tap name → shape of one sample, C first. A test compares them with the network.
        foreign: says which other model a file's tensors are, or `""`; for look-alikes that would
            load without a mismatch, or deserve a better word than one.
        file: base name of the published weight file.
        package: finds the file in an installed package, or returns None.
    """

    name: str
    title: str
    architecture: str
    build: Callable[[], TapNetwork]
    rename: Callable[[Tensors], Tensors]
    shapes: Mapping[str, tuple[int, ...]]
    preprocessing: Preprocessing | VolumePreprocessing
    licence: str
    source: str
    file: str
    package: Callable[[], Path | None] = field(default=lambda: None)
    foreign: Callable[[Tensors], str] = field(default=lambda tensors: "")
    corpora: frozenset[str] = frozenset()


def corpus_overlap(card: TeacherCard, dataset_name: str) -> bool:
    """Whether the teacher has been trained on images of this dataset.

    `isic-seg`, `medmnist:dermamnist` and `msd:Task09_Spleen` count as `isic`, `dermamnist`
    and `msd`; of a user's own folder or table nothing is known.
    """
    if dataset_name.startswith(("folder:", "table:")):
        return False
    parts = re.split(r"[:/_]|-seg\b", dataset_name.lower())
    names = {dataset_name.lower(), *parts}
    names |= {SAME_IMAGES[name] for name in names if name in SAME_IMAGES}
    return not names.isdisjoint(card.corpora)
