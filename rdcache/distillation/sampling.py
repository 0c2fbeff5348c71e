"""Which samples make a batch, and which view of each the student and the teacher both see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from rdcache.distillation.randomness import counted_generator
from rdcache.distillation.subset import EVERYTHING, Subset
from rdcache.distillation.view_orders import view_orders
from rdcache.errors import UsageError
from rdcache.store import Store

Shuffle = Literal["full", "shards"]
# A group of shards that is shuffled as one holds at least so much.
GROUP_SHARDS, GROUP_BATCHES = 8, 64
LEAST_BATCH = 2  # which batch norm needs
BLOCK = 4096  # samples whose views are ordered at once


@dataclass(frozen=True)
class Picks:
    """Samples of one batch and the view of each. With two views each, all samples come once, and
    then all of them again.

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

    Args:
        views: train on the first so many.
        shuffle: how an epoch is ordered: all samples at random, or by `in_groups_of_shards`.
        subset: which part of the training samples.

    Attributes:
        rows: int64 (n,), sample numbers in the store.
        order: int16 (n, V), each sample's permutation, its usable views first.
        usable: int64 (n,), how many of these are usable.
        left_out: samples of the part without any usable view.
        missing_views: (sample, view) pairs that are passed over.
    """

    def __init__(
        self,
        store: Store,
        seed: int,
        views: int | None = None,
        shuffle: Shuffle = "full",
        subset: Subset = EVERYTHING,
    ) -> None:
        count = min(views or store.views, store.views)
        train = subset.of_training(store)
        self.subset = subset
        stored = _stored(store, train, count)
        there = stored.any(axis=1)
        self.rows = train[there]
        self.left_out = int(np.count_nonzero(~there))
        self.missing_views = int(np.count_nonzero(~stored))
        stored = stored[there]
        self._shuffle = shuffle
        self._shard_samples = store.layout.shard_samples
        self.usable = stored.sum(axis=1)
        self.order = np.empty((len(self.rows), count), np.int16)
        for start in range(0, len(self.rows), BLOCK):
            rows = self.rows[start : start + BLOCK]
            digits = store.uid_bytes[rows].tobytes().hex()
            uids = [digits[place : place + 32] for place in range(0, len(digits), 32)]
            permutations = view_orders(seed, uids, count)
            in_order = np.take_along_axis(stored[start : start + BLOCK], permutations, 1)
            usable_first = np.argsort(~in_order, axis=1, kind="stable")
            ordered = np.take_along_axis(permutations, usable_first, axis=1)
            self.order[start : start + BLOCK] = ordered

    def __len__(self) -> int:
        return len(self.rows)

    def batches(
        self, batch_size: int, epoch: int, *key: str | int, views_each: int = 1
    ) -> list[Picks]:
        """Cut a shuffled epoch into full batches; the incomplete last one is dropped.

        Args:
            batch_size: samples in a batch, however many views there are of each.
            key: what the order depends on beside the epoch, such as a stage and a seed.
            views_each: how many views of each sample a batch has; those that follow in its order.

        Raises:
            UsageError: there are fewer samples than one batch holds.
        """
        if batch_size > len(self):
            smaller = f"--batch-size {max(len(self) // 4, LEAST_BATCH)} or smaller"
            larger = f"a larger --train-fraction than {self.subset.fraction:g}"
            advice = [smaller] if len(self) >= LEAST_BATCH else []
            advice += [larger] if self.subset.fraction < 1 else []
            raise UsageError(
                f"a batch of {batch_size} is larger than the training set.",
                training_images=len(self),
                next=", or ".join(advice) or "a dataset with more training images",
            )
        shuffled = self._shuffled(batch_size, epoch, *key)
        ends = range(batch_size, len(self) + 1, batch_size)
        return [self._picks(shuffled[end - batch_size : end], epoch, views_each) for end in ends]

    def _shuffled(self, batch_size: int, epoch: int, *key: str | int) -> np.ndarray:
        if self._shuffle == "full":
            return counted_generator("batches", *key, epoch).permutation(len(self))
        shards = self.rows // self._shard_samples
        least = max(GROUP_SHARDS, -(-GROUP_BATCHES * batch_size // self._shard_samples))
        generator = counted_generator("batches by shards", *key, epoch)
        return in_groups_of_shards(shards, least, generator)

    def _picks(self, positions: np.ndarray, epoch: int, views_each: int) -> Picks:
        turns = np.arange(epoch, epoch + views_each)[:, None] % self.usable[positions]
        positions, turns = np.tile(positions, views_each), turns.ravel()
        return Picks(self.rows[positions], self.order[positions, turns].astype(np.int64))


def in_groups_of_shards(
    shards: np.ndarray, group: int, generator: np.random.Generator
) -> np.ndarray:
    """An order of samples that goes through a store by a few shards at a time, so that a disk, or
    memory that holds no more than these, is read in large pieces.

    Shards are permuted and taken in groups; the samples of a group are permuted; and the whole
    order is rotated by a random number of samples. Thus the position of every sample is uniform
    over the epoch, exactly, whatever the sizes of the shards. Pairs are not independent: two
    samples of one shard are always in one group, and meet in a batch about n / (G·s) times as often
    as in a full shuffle, for n samples, groups of G shards, and s samples in a shard; two of
    different shards a little more seldom. A shard is a range of sample numbers here, in all views.

    Args:
        shards: int64 (n,), the shard of each sample.
        group: shards in a group.

    Returns:
        int64 (n,), a permutation of the positions in `shards`.
    """
    numbers, shard_of = np.unique(shards, return_inverse=True)
    group_of = np.empty(len(numbers), np.int64)
    group_of[generator.permutation(len(numbers))] = np.arange(len(numbers)) // group
    order = generator.permutation(len(shards))
    order = order[np.argsort(group_of[shard_of[order]], kind="stable")]
    return np.roll(order, generator.integers(len(shards)))


def _stored(store: Store, samples: np.ndarray, views: int) -> np.ndarray:
    """For each sample and view, whether its tensors are stored: bool (n, V)."""
    return np.stack([store.available(samples, view) for view in range(views)], axis=1)
