"""The samples that teachers are compared on: the same ones for all, and none of the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rdcache.data.groups import dealt_out, members_of
from rdcache.errors import StoreFormatError, UsageError
from rdcache.store import Store
from rdcache.transferability.pooled_features import usable_rows

HELD_OUT_PART = 5  # one in so many, of a dataset without validation samples
LEAST_TRAINING = 2


@dataclass(frozen=True)
class ComparedSamples:
    """Which samples the features are learnt from, and which they are judged on.

    Attributes:
        training, validation: sample numbers, int64, ascending.
        judged_on: what the latter are, in words.
        notes: what was done that a user may not expect, a sentence each.
    """

    training: np.ndarray
    validation: np.ndarray
    judged_on: str
    notes: tuple[str, ...]


def choose_samples(stores: Sequence[Store], limit: int) -> ComparedSamples:
    """Take the training and validation samples that every store has, `limit` of each at most.

    Nothing is drawn: samples are ordered by their uids, which are digests, so that every so many
    of a class are as good as random.

    Raises:
        StoreFormatError: stores of one digest whose samples differ.
        UsageError: no validation sample, or fewer than two training samples, is left.
    """
    _require_same_samples(stores)
    first, notes = stores[0], []
    rows = {}
    for split in ("train", "val"):
        usable = [set(usable_rows(store, split).tolist()) for store in stores]
        rows[split] = np.array(sorted(set.intersection(*usable)), np.int64)
        if missing := len(first.samples_of(split)) - len(rows[split]):
            lacking = sum(len(each) < len(first.samples_of(split)) for each in usable)
            notes.append(
                f"left out of the {split} split, {lacking} of {len(stores)} teachers having no "
                f"features of some: {missing}"
            )
    training, validation, judged_on = rows["train"], rows["val"], "the validation split"
    if not len(first.samples_of("val")):
        training, validation = _held_out(first, training)
        judged_on = "training images held out"
        notes.append(
            f"there is no validation split: one in {HELD_OUT_PART} training images of each class "
            "is held out, whole groups at a time"
        )
    if len(training) < LEAST_TRAINING or not len(validation):
        raise UsageError(
            "there are too few images to rank teachers on.",
            training=len(training),
            validation=len(validation),
            needs=f"{LEAST_TRAINING} and 1",
        )
    for what, part in (("training", training), ("validation", validation)):
        if len(part) > limit:
            notes.append(f"{limit} of {len(part)} {what} images are looked at (--max-samples)")
    return ComparedSamples(
        _thinned(training, first.labels, limit),
        _thinned(validation, first.labels, limit),
        judged_on,
        tuple(notes),
    )


def _require_same_samples(stores: Sequence[Store]) -> None:
    """Compare the samples of train and val, which come first in a store; a part of one may have
    been copied without the others.
    """
    first = stores[0]
    count = int((first.splits != "test").sum())
    columns = ("uid_bytes", "labels", "groups", "splits")
    for store in stores[1:]:
        same = int((store.splits != "test").sum()) == count and all(
            np.array_equal(getattr(store, name)[:count], getattr(first, name)[:count])
            for name in columns
        )
        if not same:
            raise StoreFormatError(
                "two stores say that they are of the same dataset, and have different samples.",
                store=first.location,
                other=store.location,
            )


def _thinned(rows: np.ndarray, labels: np.ndarray, limit: int) -> np.ndarray:
    """At most `limit` of the rows, evenly spaced once they are laid out class by class."""
    if len(rows) <= limit:
        return rows
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    return np.sort(by_class[np.arange(limit) * len(rows) // limit])


def _held_out(store: Store, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split training rows in two: groups are dealt out class by class, every fifth is held out."""
    folds = dealt_out(store.labels[rows], members_of(store.groups[rows]), HELD_OUT_PART)
    held_out = folds == HELD_OUT_PART - 1
    return rows[~held_out], rows[held_out]
