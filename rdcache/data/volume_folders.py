"""`folder:PATH` and `table:FILE` where the files are volumes: the same layouts as of images.

A folder of DICOM files counts as one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from rdcache.data.folders import IMAGES, MASKS, has_masks, list_folders, split_folders
from rdcache.data.listing import IMAGE_SUFFIXES, Entry, Listing
from rdcache.data.masks import declared_classes
from rdcache.data.pairs import ENDINGS, NO_MASK
from rdcache.data.tables import list_table
from rdcache.data.volume_files import (
    VOLUME_SUFFIXES,
    is_volume,
    open_volume,
    read_volume,
    stamp_volume,
    volume_stem,
)
from rdcache.data.volume_masks import class_numbers, volume_masks
from rdcache.errors import DatasetError

WHITE = 255  # what masks of two classes have for 1
AT_THE_END = tuple(("", ending) for ending in ENDINGS)


def list_images_or_volumes(folder: Path) -> Listing:
    """The images of a folder, see `list_folders`; where there are none, its volumes.

    Raises:
        DatasetError: see `list_folders`.
    """
    listing = list_folders(folder)
    if listing.entries:
        return listing
    volumes = _volumes_of(folder)
    return volumes if volumes.entries else listing


def list_table_of_either(file: Path) -> Listing:
    """The images or volumes of a table, see `list_table`.

    Raises:
        DatasetError: see `list_table`; or it has both.
    """
    listing = list_table(file)
    volumes = [entry for entry in listing.entries if _is_named_like_one(entry.path)]
    if not volumes:
        return listing
    if len(volumes) < len(listing.entries):
        image = next(entry for entry in listing.entries if entry not in volumes)
        raise DatasetError(
            "the table has both images and volumes.",
            file=file,
            found=f"{image.name}, and {volumes[0].name}",
        )
    return as_volume_files(listing)


def as_volume_files(listing: Listing, window: tuple[float, float] | None = None) -> Listing:
    """The same listing, of files that are volumes; masks hold class numbers, or black and white.

    Args:
        window: see `make_volume`.
    """
    numbers = {number: number for number in range(len(listing.classes))}
    if len(numbers) == 2:
        numbers[WHITE] = 1
    segmented = listing.task == "segmentation"
    return replace(
        listing,
        open=lambda entry: open_volume(entry.path, window),
        read=partial(read_volume, window=window),
        stamp=stamp_volume,
        dimensions=3,
        read_mask=volume_masks(class_numbers(numbers)) if segmented else None,
        window=window,
    )


def volumes_in(folder: Path) -> list[Path]:
    """Volumes directly in a folder, sorted; macOS's `._*` left out."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_volume(path))


def pairs_of_volumes(
    root: Path,
    images: Path,
    masks: Path,
    split: str | None = None,
    mask_stems: Sequence[tuple[str, str]] = AT_THE_END,
) -> tuple[list[Entry], list[tuple[str, str]]]:
    """Every volume with the mask of its name, and what has none.

    Args:
        root: the dataset's folder.
        mask_stems: how a mask's stem is made of its volume's: the beginning that is left out, and
            what is put there; without a beginning, what is put at the end.

    Returns:
        Entries of stratum 0, and (name, reason) of volumes that stand alone.
    """
    by_stem = {volume_stem(path): path for path in volumes_in(masks)}
    entries: list[Entry] = []
    alone: list[tuple[str, str]] = []
    for path in volumes_in(images):
        name = path.relative_to(root).as_posix()
        stem = volume_stem(path)
        stems = [
            new + stem.removeprefix(beginning) if beginning else stem + new
            for beginning, new in mask_stems
        ]
        mask = next((by_stem[each] for each in stems if each in by_stem), None)
        if mask is None:
            alone.append((name, f"{NO_MASK} in {masks.name}"))
        else:
            entries.append(Entry(path, name, 0, split, masks=(mask,)))
    return entries, alone


def _volumes_of(folder: Path) -> Listing:
    tops: list[tuple[str | None, Path]] = [*split_folders(folder).items()] or [(None, folder)]
    entries: list[Entry] = []
    alone: list[tuple[str, str]] = []
    if any(has_masks(top) for _, top in tops):
        for split, top in tops:
            found, without = pairs_of_volumes(folder, top / IMAGES, top / MASKS, split)
            entries += found
            alone += without
        classes = declared_classes(folder)
        listing = Listing(tuple(entries), classes, tuple(alone), task="segmentation")
        return as_volume_files(listing)
    found_classes = {sub.name for _, top in tops for sub in top.iterdir() if volumes_in(sub)}
    classes = tuple(sorted(name for name in found_classes if not name.startswith(".")))
    for split, top in tops:
        for label, name in enumerate(classes):
            entries += [
                Entry(path, path.relative_to(folder).as_posix(), label, split)
                for path in volumes_in(top / name)
            ]
    return as_volume_files(Listing(tuple(entries), classes))


def _is_named_like_one(path: Path) -> bool:
    if path.name.lower().endswith(VOLUME_SUFFIXES):
        return True
    # Folders of a series are often called by its number, 1.2.840.113619.2.55, which has a suffix.
    return path.suffix.lower() not in IMAGE_SUFFIXES and path.is_dir()
