"""Groups and folds: who belongs together, and that nobody is parted."""

from __future__ import annotations

import numpy as np

from rdcache.data.groups import dealt_out, members_of


def test_a_sample_without_a_group_stands_alone() -> None:
    members = members_of(np.array([7, -1, 7, -1, 0]))
    assert sorted(np.unique(members)) == [0, 1, 2, 3]
    assert members[0] == members[2]
    assert len(set(members[[0, 1, 3, 4]])) == 4


def test_groups_of_a_class_are_dealt_in_turn() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 1])
    members = np.array([0, 0, 1, 2, 3, 4, 4])
    assert dealt_out(labels, members, 2).tolist() == [0, 0, 1, 0, 1, 0, 0]
    backwards = dealt_out(labels, members, 2, np.array([4, 3, 2, 1, 0]))
    assert backwards.tolist() == [0, 0, 1, 0, 0, 1, 1]
