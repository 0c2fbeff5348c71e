"""Tensors that other stores under the root hold already: of the same teacher, image and view.

A dataset that has grown, or more views of it, is another store with another fingerprint. What did
not change is copied from the stores that have it, so that the teacher runs over the rest alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rdcache.errors import CorruptShardError, StoreFormatError
from rdcache.extraction.plan import ExtractionPlan
from rdcache.store import Store, TapSpec, list_stores, open_store

# Parts of the fingerprint that may differ: which images there are, and which views of them.
MAY_DIFFER = {"dataset", "views"}


@dataclass(frozen=True)
class Donated:
    """What a donor has of a shard.

    Attributes:
        positions: int64 (n,), places within the shard.
        tensors: tap name → (n, *tap) in the stored dtype; bfloat16 as its bits in uint16.
    """

    positions: np.ndarray
    tensors: dict[str, np.ndarray]


class Donors:
    """Stores to copy from.

    Args:
        stores: complete ones, of taps as the new store has them.

    Attributes:
        given: how many samples of views have been copied so far.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        self.given = 0
        self._rows = [
            {str(uid): row for row, uid in enumerate(store.uids)} for store in self.stores
        ]

    def of(self, uids: np.ndarray, parameters: np.ndarray) -> Iterator[Donated]:
        """Find tensors of these samples, each sample at most once.

        Args:
            uids: str (n,), of the samples of a shard.
            parameters: float64 (n, columns), what is cut from each.
        """
        wanted = np.ones(len(uids), bool)
        for store, row_of in zip(self.stores, self._rows, strict=True):
            rows = np.array([row_of.get(str(uid), -1) for uid in uids])
            for view in range(store.views):
                same = (store.view_parameters[view, rows] == parameters).all(axis=1)
                positions = np.flatnonzero(wanted & (rows >= 0) & same)
                positions = positions[store.available(rows[positions].tolist(), view)]
                if not len(positions):
                    continue
                try:
                    read = store.read(rows[positions].tolist(), view, verify=True)
                except CorruptShardError:
                    continue  # the teacher gives it again
                wanted[positions] = False
                self.given += len(positions)
                yield Donated(positions, {name: _as_stored(read[name]) for name in read})


def find_donors(plan: ExtractionPlan, taps: Sequence[TapSpec]) -> Donors:
    """Open the complete stores under the plan's root that differ in images or views alone."""
    own = plan.fingerprint.parts
    donors = []
    for summary in reversed(list_stores(plan.location.parents[2])):
        if not summary.complete or summary.location == plan.location:
            continue
        try:
            store = open_store(summary.location)
        except StoreFormatError:
            continue
        parts = store.fingerprint.parts
        differing = {name for name in own.keys() | parts.keys() if own.get(name) != parts.get(name)}
        if differing <= MAY_DIFFER and tuple(store.taps.values()) == tuple(taps):
            donors.append(store)
    return Donors(donors)


def _as_stored(values: torch.Tensor) -> np.ndarray:
    """NumPy knows no bfloat16: its bit patterns travel as uint16."""
    return (values.view(torch.uint16) if values.dtype == torch.bfloat16 else values).numpy()
