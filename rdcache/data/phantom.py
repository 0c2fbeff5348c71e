"""`phantom`: a drawn, ultrasound-like set, the embedded data of the demo and of tests.

Each image is drawn from its own counter-based generator: layered tissue under speckle, and in two
of three classes a lesion. Benign lesions are smooth, wide, and brighten what lies behind them;
malignant ones are irregular, tall, and cast a shadow. The ranges overlap, so that no classifier is
perfect. Nothing is read from disk.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

from rdcache.data.listing import Entry, Listing
from rdcache.data.masks import BACKGROUND
from rdcache.data.registry import register
from rdcache.data.samples import Masked

CLASSES = ("benign", "malignant", "normal")
SEGMENTED = (BACKGROUND, "lesion")
PER_CLASS = 200
VERSION = 2


@register(
    "phantom",
    title="Phantom, drawn ultrasound-like images",
    classes=CLASSES,
    split="none official: 4:1",
    symmetry="hflip",
    licence="Apache-2.0",
    source="drawn by rdcache itself",
    folders=(),
    layout="nothing to download",
)
def list_phantom(folder: Path) -> Listing:
    """Two hundred images of each class."""
    return Listing(_entries(), CLASSES, open=_open, read=read, stamp=_stamp)


@register(
    "phantom-seg",
    title="Phantom, drawn ultrasound-like images with lesions segmented",
    classes=SEGMENTED,
    split="none official: 4:1",
    symmetry="hflip",
    licence="Apache-2.0",
    source="drawn by rdcache itself",
    folders=(),
    layout="nothing to download",
    task="segmentation",
)
def list_phantom_masks(folder: Path) -> Listing:
    """The same images with their masks; those without a lesion have empty ones."""
    return Listing(
        _entries(),
        SEGMENTED,
        open=_open,
        read=read,
        stamp=_stamp,
        task="segmentation",
        read_mask=read_mask,
    )


def read_mask(sample: Masked) -> np.ndarray:
    """Draw the mask of a sample: uint8 (H, W), 1 inside the lesion."""
    return draw(sample.path.as_posix())[1].astype(np.uint8)


def _entries() -> tuple[Entry, ...]:
    return tuple(
        Entry(Path(f"{name}/{number:03}"), f"{name}/{number:03}", label)
        for label, name in enumerate(CLASSES)
        for number in range(PER_CLASS)
    )


def _stamp(path: Path) -> tuple[int, int]:
    return VERSION, 0


def read(path: Path) -> np.ndarray:
    """Draw the image of this name: uint8 (H, W, 3)."""
    return np.repeat(draw(path.as_posix())[0][..., None], 3, axis=2)


def _open(entry: Entry) -> tuple[bytes, np.ndarray]:
    pixels = read(entry.path)
    return pixels.tobytes(), pixels


@lru_cache(maxsize=2048)
def draw(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw one image.

    Args:
        name: class and number, as in `malignant/007`.

    Returns:
        uint8 (H, W) grey levels and bool (H, W), True inside the lesion.
    """
    kind, number = name.split("/")
    key = CLASSES.index(kind) * 100_000 + int(number) + 1_000_000 * VERSION
    random = np.random.Generator(np.random.Philox(key=key))
    height, width = (int(side) for side in random.integers(128, 161, 2))
    tissue = _tissue(random, height, width)
    mask = np.zeros((height, width), bool)
    if kind != "normal":
        mask = _add_lesion(random, tissue, malignant=kind == "malignant")
    speckle = gaussian_filter(random.gamma(3.0, 1 / 3, (height, width)), (0.6, 1.0))
    depth = np.linspace(1.1, 0.75, height)[:, None]
    return np.clip(tissue * speckle * depth * 255, 0, 255).astype(np.uint8), mask


def _tissue(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Skin, fat and gland as wavy layers, with a few dark lobules that are no lesions."""
    x = np.arange(width)
    y = np.arange(height)[:, None]
    wave = 6 * np.sin(2 * np.pi * (x / width * random.uniform(0.5, 2) + random.uniform()))
    skin, fat = height * 0.06, height * random.uniform(0.2, 0.35)
    tissue = np.where(y < skin, 0.85, np.where(y < fat + wave, 0.35, 0.55))
    tissue = tissue + 0.08 * _normalised(gaussian_filter(random.standard_normal(tissue.shape), 9))
    for _ in range(int(random.integers(1, 4))):
        inside = _outline(random, height, width, radius=random.uniform(5, 10), roughness=0.05)
        tissue = np.where(inside, tissue * random.uniform(0.6, 0.8), tissue)
    return np.asarray(gaussian_filter(np.clip(tissue, 0.05, 1), 1.0))


def _add_lesion(random: np.random.Generator, tissue: np.ndarray, malignant: bool) -> np.ndarray:
    """Draw a lesion into the tissue, in place, and return its mask."""
    height, width = tissue.shape
    roughness = random.uniform(0.10, 0.34) if malignant else random.uniform(0.0, 0.18)
    flatness = random.uniform(0.8, 1.3) if malignant else random.uniform(0.6, 1.0)
    radius = random.uniform(12, 28)
    mask = _outline(random, height, width, radius, roughness, flatness)
    darkness = random.uniform(0.3, 0.65)
    blurred = gaussian_filter(mask.astype(float), random.uniform(1.5, 3.5) if malignant else 1.2)
    tissue *= 1 - (1 - darkness) * blurred
    columns, depths = mask.any(axis=0), np.flatnonzero(mask.any(axis=1))
    edge = depths[-1] - 0.3 * len(depths)
    behind = np.clip((np.arange(height)[:, None] - edge) / (0.4 * len(depths)), 0, 1)
    band = gaussian_filter(columns.astype(float), 3)[None, :] * behind
    change = random.uniform(-0.45, 0.05) if malignant else random.uniform(-0.1, 0.4)
    tissue *= 1 + change * band
    return mask


def _outline(
    random: np.random.Generator,
    height: int,
    width: int,
    radius: float,
    roughness: float,
    flatness: float = 0.8,
) -> np.ndarray:
    """A closed curve around a random centre: an ellipse plus harmonics of the given roughness."""
    centre_y = random.uniform(0.4, 0.7) * height
    centre_x = random.uniform(0.25, 0.75) * width
    dy = (np.arange(height)[:, None] - centre_y) / flatness
    dx = np.arange(width) - centre_x
    angle = np.arctan2(dy, dx)
    boundary = np.ones_like(angle)
    for harmonic in range(3, 10):
        amplitude = roughness * random.uniform(0.3, 1.0) / np.sqrt(harmonic - 2)
        boundary += amplitude * np.cos(harmonic * angle + random.uniform(0, 2 * np.pi))
    return np.asarray(np.hypot(dy, dx) < radius * boundary)


def _normalised(field: np.ndarray) -> np.ndarray:
    return np.asarray(field / field.std())
