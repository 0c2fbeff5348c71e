"""Which samples a batch is made of, and where they lie in mapped shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Picks(NamedTuple):
    """What a batch is made of.

    Attributes:
        samples: int64 (B,). May be the caller's own array, and is not to be written to.
        views: one for each sample, int64 (B,), or one for all.
        numbers: view · samples of the store + sample, int64 (B,): their places in a table of
            (views, samples).
    """

    samples: np.ndarray
    views: np.ndarray | int
    numbers: np.ndarray


class Places(NamedTuple):
    """Where some samples of a batch lie.

    Attributes:
        rows: their places in the batch.
        numbers: which they are, as in `Picks`.
        sources: the mapped shard of each.
        starts, lengths: where its payload lies there, without the checksum; one length for all
            where they are not compressed.
    """

    rows: Sequence[int]
    numbers: np.ndarray
    sources: Sequence[np.ndarray]
    starts: Sequence[int]
    lengths: int | np.ndarray
