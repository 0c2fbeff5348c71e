"""`phantom-3d` and `phantom-3d-seg`: drawn, CT-like volumes, the embedded 3D data.

Each volume is drawn from its own counter-based generator: an organ in fat, under noise, with a
lesion inside. Benign lesions are smooth and nearly round; malignant ones are rough, with a darker
core. The ranges overlap, so that no classifier is perfect, and vessels in the organ look like small
lesions. Slices are twice as far apart as voxels within them. Nothing is read from disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from rdcache.data.listing import Entry, Listing
from rdcache.data.registry import register
from rdcache.data.samples import Masked
from rdcache.data.volumes import Grid, Volume, make_volume

CLASSES = ("benign", "malignant")
PARTS = ("background", "organ", "lesion")
PER_CLASS = 45
VERSION = 2
SPACING = (2.0, 1.0, 1.0)  # mm along z, y, x
DEPTHS, SIDES = (18, 23), (28, 33)
FAT, NOISE = -90.0, 22.0  # Hounsfield units
SPLIT = "none official: 4:1"
LICENCE = "Apache-2.0"
SOURCE = "drawn by rdcache itself"
LAYOUT = "nothing to download"


@dataclass(frozen=True)
class Drawing:
    """One volume: float32 (D, H, W) Hounsfield units, and uint8 (D, H, W) numbers of `PARTS`."""

    values: np.ndarray
    parts: np.ndarray


@register(
    "phantom-3d",
    title="Phantom volumes, drawn CT-like lesions",
    classes=CLASSES,
    symmetry="hflip",
    folders=(),
    dimensions=3,
    split=SPLIT,
    licence=LICENCE,
    source=SOURCE,
    layout=LAYOUT,
)
def list_lesions(folder: Path) -> Listing:
    """Forty-five volumes of each class."""
    entries = tuple(_entries())
    return Listing(
        entries, CLASSES, open=_open, read=read, stamp=lambda path: (VERSION, 0), dimensions=3
    )


@register(
    "phantom-3d-seg",
    title="Phantom volumes, organ and lesion",
    classes=PARTS,
    symmetry="hflip",
    folders=(),
    task="segmentation",
    dimensions=3,
    split=SPLIT,
    licence=LICENCE,
    source=SOURCE,
    layout=LAYOUT,
)
def list_parts(folder: Path) -> Listing:
    """The same volumes with their masks; splits are balanced by the lesion's kind."""
    return Listing(
        tuple(_entries()),
        PARTS,
        open=_open,
        read=read,
        stamp=lambda path: (VERSION, 0),
        task="segmentation",
        dimensions=3,
        read_mask=read_parts,
    )


def read(path: Path) -> Volume:
    """Draw the volume of this name."""
    values = draw(path.as_posix()).values.copy()  # a volume that is written to is drawn anew
    depth, height, width = values.shape
    grid = Grid((width, height, depth), np.diag([*SPACING[::-1], 1.0]))
    return make_volume(values.transpose(2, 1, 0)[..., None], grid)


def read_parts(sample: Masked) -> np.ndarray:
    """The mask of a volume: uint8 (D, H, W)."""
    return draw(sample.path.as_posix()).parts.copy()


def _entries() -> list[Entry]:
    return [
        Entry(Path(f"{name}/{number:03}"), f"{name}/{number:03}", label)
        for label, name in enumerate(CLASSES)
        for number in range(PER_CLASS)
    ]


def _open(entry: Entry) -> tuple[bytes, Volume]:
    volume = read(entry.path)
    return volume.values.tobytes(), volume


@lru_cache(maxsize=2 * PER_CLASS)
def draw(name: str) -> Drawing:
    """Draw one volume.

    Args:
        name: class and number, as in `malignant/007`.
    """
    kind, number = name.split("/")
    key = CLASSES.index(kind) * 100_000 + int(number) + 1_000_000 * VERSION
    random = np.random.Generator(np.random.Philox(key=key))
    depth = int(random.integers(*DEPTHS))
    height, width = (int(side) for side in random.integers(*SIDES, 2))
    middle = np.array([depth, height, width]) * SPACING / 2
    sides = zip((depth, height, width), SPACING, strict=True)
    axes = [(np.arange(side) + 0.5) * step for side, step in sides]
    places = np.stack(np.meshgrid(*axes, indexing="ij"))
    organ_centre = middle + random.uniform(-2, 2, 3)
    organ = _blob(random, places, organ_centre, random.uniform(0.62, 0.8) * middle, 0.10)
    malignant = kind == "malignant"
    radius = random.uniform(4.0, 7.0)
    roughness = random.uniform(0.14, 0.36) if malignant else random.uniform(0.0, 0.18)
    flatness = random.uniform(0.75, 1.25, 3) if malignant else random.uniform(0.88, 1.12, 3)
    lesion_centre = organ_centre + random.uniform(-0.4, 0.4, 3) * middle
    lesion = _blob(random, places, lesion_centre, radius * flatness, roughness, smoothness=1.2)
    lesion &= organ
    values = np.where(organ, random.uniform(40, 80), FAT)
    values = values + 14 * _standard(gaussian_filter(random.standard_normal(organ.shape), 2.5))
    for _ in range(int(random.integers(1, 4))):
        at = organ_centre + random.uniform(-0.5, 0.5, 3) * middle
        vessel = _blob(random, places, at, random.uniform(1.5, 2.5) * np.ones(3), 0.1) & organ
        values[vessel] += random.uniform(-40, 40)
    values[lesion] += random.uniform(-75, -35)
    if malignant:
        core = _blob(random, places, lesion_centre, 0.5 * radius * flatness, 0.1) & lesion
        values[core] += random.uniform(-75, -5)
    blurred = gaussian_filter(values, (0.4, 0.7, 0.7))
    values = blurred + NOISE * random.standard_normal(organ.shape)
    return Drawing(values.astype(np.float32), organ.astype(np.uint8) + lesion.astype(np.uint8))


def _blob(
    random: np.random.Generator,
    places: np.ndarray,
    centre: np.ndarray,
    radii: np.ndarray,
    roughness: float,
    smoothness: float = 3.0,
) -> np.ndarray:
    """An ellipsoid whose surface is moved in and out by a smooth field: bool (D, H, W).

    Args:
        places: (3, D, H, W), mm.
        centre, radii: (3,), mm.
        smoothness: of the field, in voxels.
    """
    column = (3, 1, 1, 1)
    away = np.sqrt((((places - centre.reshape(column)) / radii.reshape(column)) ** 2).sum(axis=0))
    field = _standard(gaussian_filter(random.standard_normal(away.shape), smoothness))
    return np.asarray(away + roughness * field < 1)


def _standard(field: np.ndarray) -> np.ndarray:
    return np.asarray(field / field.std())
