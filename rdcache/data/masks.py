"""Masks as class numbers, whatever way they are written in.

| classes           | in the file                           | becomes                        |
| ----------------- | ------------------------------------- | ------------------------------ |
| two               | 0 and 1                               | as it is                       |
| two               | up to 255 (black and white, greys)    | 1 above 127, as JPEG blurs     |
| three and more    | 0, 1, 2, …                            | as it is                       |

Everything else is an error, as is a number that no class has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from rdcache.data.decoding import UnreadableImageError, decode_image, decode_numbers
from rdcache.data.samples import Masked
from rdcache.errors import DatasetError

BACKGROUND = "background"
CLASSES_FILE = "classes.txt"
HALF = 127
MOST_CLASSES = 256  # masks are kept as single bytes
LISTED = 8

ReadMask = Callable[[Masked], np.ndarray]


def masks_above(threshold: int) -> ReadMask:
    """Masks of one class: every number above the threshold is foreground, in any of the files."""

    def read(sample: Masked) -> np.ndarray:
        return _union(sample, lambda numbers: numbers > threshold)

    return read


def masks_of(classes: int) -> ReadMask:
    """Masks of so many classes, the background included, by the rules above; of several files the
    largest number counts.
    """

    def read(sample: Masked) -> np.ndarray:
        return _union(sample, _two_classes if classes == 2 else in_range)

    def in_range(numbers: np.ndarray) -> np.ndarray:
        low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
        if low < 0 or high >= classes:
            wrong = high if high >= classes else low
            raise UnreadableImageError(
                f"it holds the number {wrong}, and classes go from 0 to {classes - 1}"
            )
        return numbers

    return read


def declared_classes(folder: Path) -> tuple[str, ...]:
    """The names in a folder's `classes.txt`, one a line and the background first; without such a
    file, background and foreground.

    Raises:
        DatasetError: fewer than two names, too many, or one of them twice.
    """
    file = folder / CLASSES_FILE
    if not file.is_file():
        return (BACKGROUND, "foreground")
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise DatasetError(
            "the names of the classes cannot be read.", file=file, why=error
        ) from None
    names = tuple(line.strip() for line in lines if line.strip())
    if not 2 <= len(names) <= MOST_CLASSES or len(set(names)) < len(names):
        raise DatasetError(
            "these are no names of classes.",
            file=file,
            holds=f"{len(names)} names, {len(set(names))} different ones",
            expected=f"one a line, the background first, 2 to {MOST_CLASSES}, each once",
        )
    return names


def _two_classes(numbers: np.ndarray) -> np.ndarray:
    low, high = int(numbers.min(initial=0)), int(numbers.max(initial=0))
    if low < 0 or 1 < high <= HALF:
        found = np.unique(numbers)
        listed = ", ".join(map(str, found[:LISTED])) + (", …" if len(found) > LISTED else "")
        raise UnreadableImageError(
            f"it holds the numbers {listed}; masks of two classes hold 0 and 1, or black and white;"
            f" more classes are named in a {CLASSES_FILE}"
        )
    return numbers > HALF if high > 1 else numbers


def _union(sample: Masked, rule: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """uint8 (H, W): the largest class number of all files at each pixel."""
    union: np.ndarray | None = None
    for numbers in _files(sample):
        mask = rule(numbers).astype(np.uint8)
        if union is not None and mask.shape != union.shape:
            raise UnreadableImageError("its files differ in size")
        union = mask if union is None else np.maximum(union, mask)
    if union is None:
        return np.zeros(decode_image(sample.path.read_bytes()).shape[:2], np.uint8)
    return union


def _files(sample: Masked) -> Iterator[np.ndarray]:
    for path in sample.masks:
        yield decode_numbers(path.read_bytes())
