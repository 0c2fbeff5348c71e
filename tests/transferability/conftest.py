"""Small stores of invented features, which tell of the classes as much as a test wants."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdcache.data import VIEW_COLUMNS
from rdcache.store import (
    NOT_FINITE,
    STORED,
    Fingerprint,
    SampleTable,
    Store,
    StoreContent,
    StoreLayout,
    TapSpec,
    create_store,
    open_store,
    store_location,
)
from rdcache.store.gather import as_stored
from rdcache.store.quantisation import quantised, with_scales

CLASSES = ("benign", "malignant", "normal")
SIZES = {"train": 90, "val": 45, "test": 30}


def vectors(labels: np.ndarray, signal: float, seed: int = 0, channels: int = 6) -> np.ndarray:
    """Unit noise (n, channels) around a centre for each class, `signal` away from the origin."""
    random = np.random.default_rng(seed)
    centres = np.eye(channels)[: len(CLASSES)]
    return signal * centres[labels] + random.normal(0, 1, (len(labels), channels))


@dataclass(frozen=True)
class Images:
    """The images that teachers have looked at, and the root their stores lie under.

    Attributes:
        labels: int64 (n,); by default every class in turn within each split.
        groups: int64 (n,); by default none has any.
    """

    root: Path
    sizes: Mapping[str, int] = field(default_factory=lambda: SIZES)
    labels: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    groups: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    digest: str = "d1"
    leaks: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = sum(self.sizes.values())
        if not len(self.labels):
            turns = [np.arange(size) % len(CLASSES) for size in self.sizes.values()]
            object.__setattr__(self, "labels", np.concatenate(turns))
        if not len(self.groups):
            object.__setattr__(self, "groups", np.full(count, -1))

    def but(self, **changes: Any) -> Images:
        return replace(self, **changes)

    @property
    def splits(self) -> np.ndarray:
        return np.repeat(list(self.sizes), list(self.sizes.values()))

    def store(
        self,
        teacher: str,
        features: Mapping[TapSpec | str, np.ndarray],
        lacking: Sequence[int] = (),
        version: str = "",
        weights: str = "file",
        commit: bool = True,
        **facts: Any,
    ) -> Store:
        """Write the store of a teacher.

        Args:
            features: tap → float (n, *tap); a name alone is a float32 vector.
            lacking: samples that are marked as NaN or Inf.
            version: to tell several stores of one teacher apart.
            weights: where the teacher's come from.
            commit: whether it is finished; its features are not written otherwise.
            facts: to replace entries of the manifest.
        """
        values = {
            TapSpec(tap, "vector", each.shape[1:], "float32") if isinstance(tap, str) else tap: each
            for tap, each in features.items()
        }
        count = len(self.labels)
        taps = tuple(values)
        layout = StoreLayout.plan(with_scales(taps), (count,))
        uids = tuple(hashlib.md5(str(number).encode()).hexdigest() for number in range(count))
        content = StoreContent(
            layout,
            Fingerprint({"teacher": teacher, "dataset": self.digest, "version": version}),
            SampleTable(uids, self.labels, tuple(self.splits), self.groups),
            np.zeros((1, count, len(VIEW_COLUMNS))),
            VIEW_COLUMNS,
            {
                "dataset": {
                    "name": "scans",
                    "digest": self.digest,
                    "classes": list(CLASSES),
                    "leaks": dict(self.leaks),
                },
                "teacher": {"name": teacher, "weights": {"source": weights}},
                **facts,
            },
        )
        writer = create_store(
            store_location(self.root, "scans", teacher, content.fingerprint.digest), content
        )
        if not commit:
            return open_store(writer.location, allow_incomplete=True)
        dtypes = {tap.name: getattr(torch, tap.dtype) for tap in layout.taps}
        for shard in writer.missing():
            part = slice(shard.start, shard.stop)
            batch = {tap.name: torch.from_numpy(each[part]).float() for tap, each in values.items()}
            stored = quantised(batch, taps)
            outcome = [
                NOT_FINITE if row in lacking else STORED for row in range(shard.start, shard.stop)
            ]
            writer.write(
                shard,
                {name: as_stored(each.to(dtypes[name])) for name, each in stored.items()},
                np.array(outcome, np.uint8),
            )
        return writer.commit({})


@pytest.fixture
def images(tmp_path: Path) -> Images:
    return Images(tmp_path / "root")
