"""Which samples make a batch, and which view of each the student and the teacher both see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rdcache.distillation.randomness import counted_generator
from rdcache.errors import UsageError
from rdcache.store import Store


@dataclass(frozen=True)
class Picks:
    """Samples of one batch and the view of each.

    Attributes:
        samples: int64 (B,), sample numbers in the store.
        views: int64 (B,).
    """

    samples: np.ndarray
    views: np.ndarray


class TrainingSamples:
    """The usable training samples of a store, and the order in which each one's views come.

    In epoch e a sample is seen through view p[e mod V], where p is a permutation of its own, so
    that all views are used evenly and a batch mixes all of them. Views for which the teacher gave
    NaN or Inf are passed over.

    Attributes:
        rows: int64 (n,), sample numbers in the store.
        order: int64 (n, V), each sample's permutation, its usable views first.
        usable: int64 (n,), how many of these are usable.
        left_out: training samples without any usable view.
        missing_views: (sample, view) pairs that are passed over.
    """

    def __init__(self, store: Store, seed: int, views: int | None = None) -> None:
        count = min(views or store.views, store.views)
        train = np.flatnonzero(store.splits == "train")
        stored = _stored(store, train, count)
        there = stored.any(axis=1)
        self.rows = train[there]
        self.left_out = int(np.count_nonzero(~there))
        self.missing_views = int(np.count_nonzero(~stored))
        permutations = np.array(
            [
                counted_generator("views", seed, str(uid)).permutation(count)
                for uid in store.uids[self.rows]
            ],
            np.int64,
        ).reshape(len(self.rows), count)
        in_order = np.take_along_axis(stored[there], permutations, axis=1)
        usable_first = np.argsort(~in_order, axis=1, kind="stable")
        self.order = np.take_along_axis(permutations, usable_first, axis=1)
        self.usable = in_order.sum(axis=1)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, batch_size: int, epoch: int, *key: str | int) -> list[Picks]:
        """Cut a shuffled epoch into full batches; the incomplete last one is dropped.

        Args:
            key: what the order depends on beside the epoch, such as a stage and a seed.

        Raises:
            UsageError: there are fewer samples than one batch holds.
        """
        if batch_size > len(self):
            raise UsageError(
                f"a batch of {batch_size} is larger than the training set.",
                training_images=len(self),
                next=f"--batch-size {max(len(self) // 4, 1)} or smaller",
            )
        shuffled = counted_generator("batches", *key, epoch).permutation(len(self))
        ends = range(batch_size, len(self) + 1, batch_size)
        return [self._picks(shuffled[end - batch_size : end], epoch) for end in ends]

    def _picks(self, positions: np.ndarray, epoch: int) -> Picks:
        turns = epoch % self.usable[positions]
        return Picks(self.rows[positions], self.order[positions, turns])


def _stored(store: Store, samples: Sequence[int] | np.ndarray, views: int) -> np.ndarray:
    """For each sample and view, whether its tensors are stored: bool (n, V)."""
    rows = [int(sample) for sample in samples]
    return np.stack([store.available(rows, view) for view in range(views)], axis=1)
