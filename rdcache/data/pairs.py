"""Images in one folder and their masks in another, found by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rdcache.data.listing import Entry, image_files

NO_MASK = "it has no mask"
NO_IMAGE = "a mask without an image"
# What people add to an image's name for that of its mask.
ENDINGS = ("", "_mask", "_segmentation", "-mask", "_gt")


def paired(
    root: Path,
    images: Path,
    masks: Path,
    split: str | None = None,
    endings: Sequence[str] = ENDINGS,
) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Every image with the mask of its name, and what has no counterpart.

    Args:
        root: the dataset's folder.
        endings: of a mask's stem after its image's; the first that fits counts.

    Returns:
        Entries of stratum 0, and (name, reason) of images and masks that stand alone.
    """
    by_stem: dict[str, list[Path]] = {}
    for path in image_files(masks):
        by_stem.setdefault(path.stem, []).append(path)
    entries: list[Entry] = []
    alone: list[tuple[str, str]] = []
    for path in image_files(images):
        name = path.relative_to(root).as_posix()
        stem = next((path.stem + end for end in endings if path.stem + end in by_stem), None)
        if stem is None:
            alone.append((name, NO_MASK))
        else:
            entries.append(Entry(path, name, 0, split, masks=tuple(by_stem[stem])))
    used = {path for entry in entries for path in entry.masks}
    alone += [
        (path.relative_to(root).as_posix(), NO_IMAGE)
        for paths in by_stem.values()
        for path in paths
        if path not in used
    ]
    return entries, alone
