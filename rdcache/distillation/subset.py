"""A part of the training images, for the question of how many a student needs.

A part is drawn class by class and by whole groups (the images of one patient stay together), and a
smaller one lies within a larger one of the same seed. Validation and test images stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rdcache.data import strata_of
from rdcache.data.groups import members_of
from rdcache.distillation.randomness import counted_keys
from rdcache.store import Store


@dataclass(frozen=True)
class Subset:
    """Which part of the training images a run sees.

    Attributes:
        fraction: of all, 0 < fraction ≤ 1.
        seed: which of the many parts of this size; 0 where it is all of them.
    """

    fraction: float = 1.0
    seed: int = 0

    @classmethod
    def of(cls, fraction: float, seed: int) -> Subset:
        """The same object for all seeds where all images are wanted: so it can be compared."""
        return cls(fraction, seed) if fraction < 1 else cls()

    def of_training(self, store: Store) -> np.ndarray:
        """The numbers of its samples in a store, int64, ascending.

        They follow from uids, labels and groups alone, so they are the same on every machine, for
        every teacher, and in whatever order the samples stand.
        """
        train = store.samples_of("train")
        if self.fraction == 1 or not len(train):
            return train
        labels, groups = strata_of(np.asarray(store.labels))[train], np.asarray(store.groups)[train]
        chosen = drawn(store.uid_bytes[train], labels, groups, self.fraction, self.seed)
        return np.asarray(train[chosen])


EVERYTHING = Subset()


def drawn(
    uids: np.ndarray, labels: np.ndarray, groups: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Choose a fraction of each class, whole groups at a time.

    A group counts as of the class that most of its samples are of. The groups of a class stand in
    one order, which is that of their keyed hashes: a group's is that of its smallest uid. As many
    from its beginning are taken as come nearest to the fraction of the class's samples, so that a
    smaller fraction's choice is the beginning of a larger one's. Before all others stand, for each
    class, the first group that has a sample of it; these are taken whatever the fraction is.

    Args:
        uids: uint8 (n, 16).
        labels, groups: int64 (n,); group -1 is a sample that stands alone.

    Returns:
        bool (n,).
    """
    members = members_of(groups)
    sizes = np.bincount(members)
    own = _most_common(members, labels)
    hashes = _hashes(uids, members, seed)
    needed = np.zeros(len(sizes), bool)
    for label in np.unique(labels):
        having = np.unique(members[labels == label])
        if not needed[having].any():
            elsewhere = own[having] != label
            needed[having[np.lexsort((hashes[having], elsewhere))[0]]] = True
    taken = np.zeros(len(sizes), bool)
    for label in np.unique(own):
        of_class = np.flatnonzero(own == label)
        order = of_class[np.lexsort((hashes[of_class], ~needed[of_class]))]
        reached = np.concatenate([[0], np.cumsum(sizes[order])])
        count = int(np.argmin(np.abs(reached - fraction * reached[-1])))
        taken[order[: max(count, int(needed[order].sum()))]] = True
    return np.asarray(taken[members])


def _most_common(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class that most samples of each group are of; of equal ones the first."""
    counts = np.zeros((members.max() + 1, labels.max() + 1), np.int64)
    np.add.at(counts, (members, labels), 1)
    return np.asarray(counts.argmax(axis=1))


def _hashes(uids: np.ndarray, members: np.ndarray, seed: int) -> np.ndarray:
    """A number for each group by which they are put in order: uint64."""
    texts = np.array([row.tobytes().hex() for row in uids])
    by_uid = np.argsort(texts)
    smallest = by_uid[np.unique(members[by_uid], return_index=True)[1]]
    keys = counted_keys("training subset", seed, last=texts[smallest].tolist())
    return np.frombuffer(keys, "<u8")[::2]
