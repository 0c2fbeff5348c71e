"""Groups of samples that are never told apart (the images of one patient), dealt out to folds."""

from __future__ import annotations

import numpy as np


def members_of(groups: np.ndarray) -> np.ndarray:
    """The group of each sample, counted from 0: int64 (n,). A sample without one stands alone.

    Args:
        groups: int64 (n,), equal numbers for samples of one group, -1 for none.
    """
    # Its own number, made negative, is its group.
    own = np.where(groups < 0, -1 - np.arange(len(groups)), groups)
    return np.unique(own, return_inverse=True)[1]


def dealt_out(
    labels: np.ndarray, members: np.ndarray, count: int, order: np.ndarray | None = None
) -> np.ndarray:
    """Deal samples out to folds, class by class, whole groups at a time.

    A group counts as of the class of its first sample.

    Args:
        labels: int64 (n,).
        members: the group of each sample, as `members_of` gives it.
        count: number of folds.
        order: the groups' numbers in the order in which those of a class are dealt (default: as
            they are counted).

    Returns:
        int64 (n,): the fold of each sample.
    """
    first = np.unique(members, return_index=True)[1]
    order = np.arange(len(first)) if order is None else order
    dealt = order[np.argsort(labels[first][order], kind="stable")]
    fold_of_group = np.empty(len(first), np.int64)
    fold_of_group[dealt] = np.arange(len(first)) % count
    return np.asarray(fold_of_group[members])
