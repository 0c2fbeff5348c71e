"""Folds of the training samples, for targets from branches that have not seen an image."""

from __future__ import annotations

import numpy as np

from rdcache.distillation.randomness import counted_generator
from rdcache.store import Store


def training_folds(store: Store, rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Deal the training samples out to folds, class by class, whole groups at a time.

    Args:
        rows: sample numbers of the training samples.
        count: number of folds.

    Returns:
        int64 (N,): the fold of each sample of the store, -1 where it is not in `rows`.
    """
    labels, groups = np.asarray(store.labels)[rows], np.asarray(store.groups)[rows]
    # A sample without a group stands alone; its own number, made negative, is its group.
    groups = np.where(groups < 0, -1 - np.arange(len(rows)), groups)
    _, first, member_of = np.unique(groups, return_index=True, return_inverse=True)
    shuffled = counted_generator("folds", seed).permutation(len(first))
    dealt = shuffled[np.argsort(labels[first][shuffled], kind="stable")]
    fold_of_group = np.empty(len(first), np.int64)
    fold_of_group[dealt] = np.arange(len(first)) % count
    folds = np.full(store.samples, -1, np.int64)
    folds[rows] = fold_of_group[member_of]
    return folds
