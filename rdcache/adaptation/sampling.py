"""Which images make a batch, through which view: as they come, or all classes alike."""

from __future__ import annotations

import numpy as np

from rdcache.data import ImageDataset
from rdcache.distillation.randomness import counted_generator
from rdcache.distillation.sampling import Picks
from rdcache.distillation.view_orders import view_orders
from rdcache.errors import DatasetError, UsageError

IN_A_ROW = 4  # images of a class that follow each other in a class-balanced batch


class TrainingImages:
    """The training images of a dataset, and the order in which each one's views come.

    As in phase 2, an image is seen in epoch e through view p[e mod V], where p is a permutation of
    its own.

    Args:
        views: V.
        seed: of the orders.

    Raises:
        DatasetError: all of them are of one class.
    """

    def __init__(self, dataset: ImageDataset, views: int, seed: int) -> None:
        self.rows = np.flatnonzero(dataset.splits == "train")
        self.labels = dataset.labels[self.rows]
        self.counts = np.bincount(self.labels, minlength=len(dataset.classes))
        if np.count_nonzero(self.counts) < 2:
            raise DatasetError(
                "there is nothing to learn: all training images are of one class.",
                dataset=dataset.name,
            )
        self._order = view_orders(seed, dataset.uids[self.rows].tolist(), views)
        self._seed = seed

    def __len__(self) -> int:
        return len(self.rows)

    def require(self, batch_size: int) -> None:
        """Refuse batches that are larger than the training set.

        Raises:
            UsageError: they are.
        """
        if batch_size > len(self):
            raise UsageError(
                f"a batch of {batch_size} is larger than the training set.",
                training_images=len(self),
                next=f"--batch-size {max(len(self) // 4, 2)} or smaller",
            )

    def shuffled(self, batch_size: int, epoch: int, stage: str) -> list[Picks]:
        """An epoch in full batches, at random; the incomplete last one is dropped."""
        generator = counted_generator("batches", stage, self._seed, epoch)
        return self._cut(generator.permutation(len(self)), batch_size, epoch)

    def balanced(self, batch_size: int, epoch: int, stage: str) -> list[Picks]:
        """As many batches, in which classes take turns, a few images each; each class goes through
        its own images in a random order, again and again.
        """
        generator = counted_generator("balanced batches", stage, self._seed, epoch)
        wanted = len(self) // batch_size * batch_size
        present = np.flatnonzero(self.counts)
        rounds = -(-wanted // (IN_A_ROW * len(present)))
        turns = np.concatenate([generator.permutation(present) for _ in range(rounds)])
        classes = np.repeat(turns, IN_A_ROW)[:wanted]
        positions = np.empty(wanted, np.int64)
        for number in present:
            places = np.flatnonzero(classes == number)
            members = np.flatnonzero(self.labels == number)
            times = -(-len(places) // len(members))
            cycles = [generator.permutation(members) for _ in range(times)]
            positions[places] = np.concatenate([*cycles, members[:0]])[: len(places)]
        return self._cut(positions, batch_size, epoch)

    def _cut(self, positions: np.ndarray, batch_size: int, epoch: int) -> list[Picks]:
        ends = range(batch_size, len(positions) + 1, batch_size)
        return [self._picks(positions[end - batch_size : end], epoch) for end in ends]

    def _picks(self, positions: np.ndarray, epoch: int) -> Picks:
        views = self._order[positions, epoch % self._order.shape[1]]
        return Picks(self.rows[positions], views)


def joined(first: Picks, second: Picks) -> Picks:
    """Two batches as one."""
    return Picks(
        np.concatenate([first.samples, second.samples]),
        np.concatenate([first.views, second.views]),
    )
