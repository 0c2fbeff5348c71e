"""Folds of the training samples: even, by class, and never through a group."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rdcache.distillation.folds import training_folds


@given(
    labels=st.lists(st.integers(0, 3), min_size=4, max_size=60),
    groups=st.lists(st.integers(-1, 8), min_size=60, max_size=60),
    count=st.integers(2, 5),
    seed=st.integers(0, 3),
)
def test_folds_cover_the_training_samples_and_keep_groups_together(
    labels: list[int], groups: list[int], count: int, seed: int
) -> None:
    size = len(labels)
    store: Any = SimpleNamespace(
        labels=np.array(labels), groups=np.array(groups[:size]), samples=size
    )
    rows = np.arange(size)[: max(size - 2, 1)]
    folds = training_folds(store, rows, count, seed)
    assert (folds[rows] >= 0).all()
    assert (folds[rows] < count).all()
    assert (np.delete(folds, rows) == -1).all()
    for group in set(groups[:size]) - {-1}:
        members = rows[store.groups[rows] == group]
        assert len(set(folds[members])) <= 1
    np.testing.assert_array_equal(folds, training_folds(store, rows, count, seed))


def test_every_fold_has_its_share_of_every_class() -> None:
    labels = np.repeat([0, 1, 2], [50, 30, 20])
    store: Any = SimpleNamespace(labels=labels, groups=np.full(100, -1), samples=100)
    folds = training_folds(store, np.arange(100), 5, seed=0)
    for fold in range(5):
        np.testing.assert_array_equal(np.bincount(labels[folds == fold]), [10, 6, 4])
