"""Stores of invented numbers for benchmarks, written as rdcache writes them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from rdcache.store import (
    Fingerprint,
    SampleTable,
    ShardRef,
    Store,
    StoreContent,
    StoreLayout,
    TapSpec,
    create_store,
)

COLUMNS = ("left", "top", "right", "bottom", "mirror", "quarter_turns")
Rows = Callable[[TapSpec, ShardRef], np.ndarray]


def random_rows(tap: TapSpec, shard: ShardRef) -> np.ndarray:
    """float16 (n, *tap), drawn by shard alone."""
    generator = np.random.default_rng([shard.view, shard.start])
    shape = (shard.stop - shard.start, *tap.shape)
    return generator.standard_normal(shape, np.float32).astype(np.float16)


def write_store(location: Path, layout: StoreLayout, rows: Rows = random_rows) -> Store:
    """A complete store whose samples are all for training.

    Args:
        rows: the numbers of a tap in one shard, (n, *tap).
    """
    count = layout.samples
    uids = tuple(hashlib.md5(number.to_bytes(8, "big")).hexdigest() for number in range(count))
    zeros = np.zeros(count, np.int64)
    boxes = np.tile([0.0, 0.0, 1.0, 1.0, 0.0, 0.0], (layout.views, count, 1))
    content = StoreContent(
        layout,
        Fingerprint({"teacher": "invented"}),
        SampleTable(uids, zeros, ("train",) * count, zeros - 1),
        boxes,
        COLUMNS,
        {"dataset": {"name": "invented"}, "teacher": {"name": "nobody"}},
    )
    writer = create_store(location, content)
    for shard in layout.shards():
        there = np.ones(shard.stop - shard.start, np.uint8)
        writer.write(shard, {tap.name: rows(tap, shard) for tap in layout.taps}, there)
    return writer.commit({})
