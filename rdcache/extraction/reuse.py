"""Tensors that other stores under the root hold already: of the same teacher, image and view.

A dataset that has grown, or more views of it, is another store with another fingerprint. What did
not change is copied from the stores that have it, so that the teacher runs over the rest alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rdcache.errors import (
    BucketError,
    CorruptShardError,
    SignatureError,
    StoreFormatError,
    StoreIncompleteError,
    StoreNotFoundError,
    StoreReadError,
    UnsafeFileError,
)
from rdcache.extraction.plan import ExtractionPlan
from rdcache.store import Location, Store, TapSpec, default_root, list_stores, open_directly
from rdcache.store.gather import as_stored
from rdcache.store.manifest import digests_of, fingerprint_of, read_manifest

UNUSABLE = (
    SignatureError,
    StoreFormatError,
    StoreIncompleteError,
    StoreNotFoundError,
    StoreReadError,
    UnsafeFileError,
)
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
                    read = store.read_stored(rows[positions].tolist(), view, verify=True)
                except (CorruptShardError, StoreReadError, UnsafeFileError, BucketError):
                    continue  # the teacher gives it again
                wanted[positions] = False
                self.given += len(positions)
                yield Donated(positions, {name: as_stored(read[name]) for name in read})


def find_donors(plan: ExtractionPlan, taps: Sequence[TapSpec]) -> Donors:
    """Open the complete stores under the plan's root that differ in images or views alone."""
    own = plan.fingerprint
    bases = _bases(read_manifest(plan.location), plan.location)
    donors = []
    for summary in reversed(list_stores(default_root(plan.config.root))):
        if not summary.complete or summary.location == plan.location:
            continue
        try:
            other = fingerprint_of(read_manifest(summary.location), summary.location)
            if not set(other.differences(own)) <= MAY_DIFFER:
                continue
            store = open_directly(summary.location, require_signature=plan.config.require_signature)
            same = _bases(store.manifest, store.location) == bases
        except UNUSABLE:
            continue  # damaged, not trusted, or changed by others since it was listed
        if same and _numbers(store.layout.taps) == _numbers(taps):
            donors.append(store)
    return Donors(donors)


def _numbers(taps: Sequence[TapSpec]) -> list[TapSpec]:
    """What decides the numbers of taps: all but their codecs."""
    return [replace(tap, codec="none") for tap in taps]


def _bases(manifest: Mapping[str, Any], location: Location) -> dict[str, str]:
    """The digests of a store's bases; other training samples may have given other ones."""
    digests = digests_of(manifest, location)
    return {name: digest for name, digest in digests.items() if name.startswith("taps/")}
