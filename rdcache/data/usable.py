"""Refusing a dataset that nobody could learn from, or of which half an official split is gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rdcache.data.listing import Entry, Listing
from rdcache.data.registry import CATALOGUE, DatasetCard
from rdcache.data.samples import Skipped
from rdcache.data.scan import Scan
from rdcache.errors import DatasetError, DatasetNotFoundError

NOTHING_TO_LEARN = {
    "multiclass": "has images of one class only; there is nothing to tell apart.",
    "multilabel": "has no image with a finding; there is nothing to find.",
    "segmentation": "has no mask with anything in it; there is nothing to segment.",
}


def require_official_splits(
    card: DatasetCard, place: Path, listing: Listing, entries: Sequence[Entry]
) -> None:
    """Refuse half of an official split: a drawn one instead would not be the published task.

    Raises:
        DatasetNotFoundError: there are training images or test images only.
    """
    found = {entry.split for entry in entries} - {None}
    if card.name not in CATALOGUE or not found:
        return
    for split in ("train", "test"):
        if split not in found:
            raise DatasetNotFoundError(
                f"the official {split} images of {card.name} are not there.",
                looked_for=place / listing.official.get(split, "."),
                expected=card.layout,
                get_it_from=f"{card.source} (licence: {card.licence})",
            )


def require_usable(
    name: str,
    place: Path,
    listing: Listing,
    readable: Sequence[tuple[Entry, Scan]],
    skipped: Sequence[Skipped],
    strict: bool,
) -> None:
    """Refuse a dataset without anything to learn, or with a class that only its test knows.

    Args:
        strict: whether a file that cannot be used is an error, too.

    Raises:
        DatasetError: saying which.
    """
    if strict and skipped:
        raise DatasetError(
            f"{len(skipped)} files of {name} cannot be used, and --strict was given.",
            folder=place,
            first=f"{skipped[0].path}: {skipped[0].reason}",
        )
    occurring = [_classes_of(listing, entry, result) for entry, result in readable]
    present = set().union(*occurring)
    if len(present) < (2 if listing.task == "multiclass" else 1):
        found = listing.classes[present.pop()] if present else f"{len(readable)} images"
        raise DatasetError(
            f"{name} {NOTHING_TO_LEARN[listing.task]}",
            folder=place,
            found=found if readable else "no readable image",
            classes=", ".join(listing.classes),
        )
    trains = [entry.split in ("train", None) for entry, _ in readable]
    if not any(trains):
        return
    training = set().union(*(own for own, it in zip(occurring, trains, strict=True) if it))
    for (entry, _), own in zip(readable, occurring, strict=True):
        if unknown := own - training:
            raise DatasetError(
                f"the class {listing.classes[min(unknown)]!r} has no training image that can be "
                "read; nobody could learn it.",
                looked_in=place,
                occurs_in=f"{entry.split}, {entry.name}",
                trained=", ".join(listing.classes[label] for label in sorted(training)),
            )


def _classes_of(listing: Listing, entry: Entry, result: Scan) -> set[int]:
    """What an image shows: its class, its findings, or what its mask holds beside background."""
    if listing.task == "segmentation":
        return {number for number, count in enumerate(result.mask_counts) if number and count}
    if isinstance(entry.label, int):
        return {entry.label}
    return {number for number, there in enumerate(entry.label) if there}
