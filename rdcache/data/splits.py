"""Splits where a dataset has none of its own: stratified by class, never cutting a group.

Images of several findings are stratified by the rarest of them, see `strata_of`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

# A published validation split smaller than this tells little; some of train is added to it.
FEW = 100


def complete_splits(
    official: Sequence[str | None],
    labels: Sequence[int],
    groups: Sequence[str],
    seed: int,
    val_fraction: float,
    test_fraction: float,
    few: int = FEW,
) -> list[str]:
    """Keep official splits, and draw those that are missing.

    Without any official split, the test samples are drawn from all. Without an official validation
    split, or with one of fewer than `few` samples, validation samples are drawn from train.
    Official test samples are never touched.

    Args:
        official: `train`, `val`, `test`, or None where the dataset says nothing.
        groups: samples that share one stay together; unique for samples that stand alone.

    Returns:
        A split for each sample.
    """
    splits = np.array([split or "train" for split in official], dtype=object)
    if "test" not in splits:
        splits[_draw(np.flatnonzero(splits == "train"), labels, groups, test_fraction, seed)] = (
            "test"
        )
    if np.count_nonzero(splits == "val") < max(few, 1):
        training = np.flatnonzero(splits == "train")
        splits[_draw(training, labels, groups, val_fraction, seed + 1)] = "val"
    return [str(split) for split in splits]


def strata_of(labels: np.ndarray) -> np.ndarray:
    """What drawn splits and folds are balanced by: one number a sample, int64 (N,).

    A class number is its own. Of several findings the rarest of those that a sample has counts,
    since it is the one that a draw could miss; a sample without any finding is of a stratum of its
    own.

    Args:
        labels: int64 (N,), or (N, L) with 0 or 1 for each finding.
    """
    if labels.ndim == 1:
        return np.asarray(labels, np.int64)
    frequency = np.where(labels > 0, labels.sum(axis=0), len(labels) + 1)
    return np.where(labels.any(axis=1), frequency.argmin(axis=1) + 1, 0).astype(np.int64)


def _draw(
    candidates: np.ndarray,
    labels: Sequence[int],
    groups: Sequence[str],
    fraction: float,
    seed: int,
) -> np.ndarray:
    """Choose `fraction` of each class's candidates, whole groups at a time."""
    members: dict[str, list[int]] = {}
    for number in candidates:
        members.setdefault(groups[number], []).append(int(number))
    by_class: dict[int, list[str]] = {}
    for group, numbers in members.items():
        counts = Counter(labels[number] for number in numbers)
        most_common = min(counts, key=lambda label: (-counts[label], label))
        by_class.setdefault(most_common, []).append(group)
    random = np.random.Generator(np.random.PCG64(seed))
    chosen: list[int] = []
    for label in sorted(by_class):
        names = sorted(by_class[label])
        wanted = round(fraction * sum(len(members[name]) for name in names))
        taken = 0
        for position in random.permutation(len(names)):
            numbers = members[names[position]]
            if taken + len(numbers) <= wanted:
                chosen += numbers
                taken += len(numbers)
    return np.array(sorted(chosen), np.int64)
