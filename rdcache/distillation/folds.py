"""Folds of the training samples, for targets from branches that have not seen an image."""

from __future__ import annotations

import numpy as np

from rdcache.data import strata_of
from rdcache.data.groups import dealt_out, members_of
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
    labels, groups = strata_of(np.asarray(store.labels))[rows], np.asarray(store.groups)[rows]
    members = members_of(groups)
    shuffled = counted_generator("folds", seed).permutation(len(np.unique(members)))
    folds = np.full(store.samples, -1, np.int64)
    folds[rows] = dealt_out(labels, members, count, shuffled)
    return folds
