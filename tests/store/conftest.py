"""Small stores with invented numbers, and what lies in their folders."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdcache.store import (
    Fingerprint,
    SampleTable,
    ShardRef,
    Store,
    StoreContent,
    StoreLayout,
    StoreWriter,
    TapSpec,
    create_store,
)

TAPS = (
    TapSpec("layer4", "map2d", (3, 2, 2), "float16"),
    TapSpec("tokens", "tokens", (4, 5), "bfloat16"),
    TapSpec("volume", "map3d", (2, 2, 1, 3), "float32"),
    TapSpec("pooled", "vector", (7,), "float32"),
    TapSpec("logits", "logits", (3,), "float16"),
)
# 6 training samples in 3 views, 2 for validation and 2 for testing in the clean view only.
LAYOUT = StoreLayout(samples=10, extents=(10, 6, 6), taps=TAPS, shard_samples=4)
FINGERPRINT = Fingerprint({"teacher": "invented", "dtype": {"layer4": "float16"}})
COLUMNS = ("left", "top", "right", "bottom", "mirror", "quarter_turns")


def sample_table(layout: StoreLayout) -> SampleTable:
    """The training samples are those that the smallest view covers; one validates."""
    train = min(layout.extents)
    rest = layout.samples - train
    return SampleTable(
        uids=tuple(hashlib.md5(bytes([i % 256, i // 256])).hexdigest() for i in _numbers(layout)),
        labels=labels_of(layout),
        splits=("train",) * train + ("val",) * min(rest, 2) + ("test",) * max(rest - 2, 0),
        groups=np.array([i // 2 - 1 for i in _numbers(layout)]),
    )


def labels_of(layout: StoreLayout) -> np.ndarray:
    """A class number of three, or one bit of the sample's number for each finding."""
    if not layout.findings:
        return np.array([i % 3 for i in _numbers(layout)])
    return np.array([[i >> bit & 1 for bit in range(layout.findings)] for i in _numbers(layout)])


def view_parameters(layout: StoreLayout) -> np.ndarray:
    random = np.random.default_rng(5)
    return random.random((layout.views, layout.samples, len(COLUMNS)))


def rows_of(tap: TapSpec, shard: ShardRef) -> np.ndarray:
    """Numbers that depend on tap, view and sample alone, in the stored dtype."""
    values = []
    for sample in range(shard.start, shard.stop):
        key = [len(tap.name), tap.nbytes, shard.view, sample]
        values.append(np.random.default_rng(key).standard_normal(tap.shape).astype(np.float32))
    rows = np.stack(values)
    if tap.dtype == "bfloat16":
        return (rows.view(np.uint32) >> 16).astype(np.uint16)
    return rows.astype(tap.dtype)


def begin(location: Path, layout: StoreLayout = LAYOUT, **changes: Any) -> StoreWriter:
    arguments: dict[str, Any] = {
        "fingerprint": FINGERPRINT,
        "samples": sample_table(layout),
        "view_parameters": view_parameters(layout),
        "view_columns": COLUMNS,
        "facts": {"dataset": {"name": "invented"}, "teacher": {"name": "nobody"}},
        **changes,
    }
    return create_store(location, StoreContent(layout, **arguments))


def fill(writer: StoreWriter, outcomes: Mapping[tuple[int, int], int] | None = None) -> None:
    """Write what is missing; `outcomes` are those, by (view, sample), that are not 1."""
    for shard in writer.missing():
        outcome = np.array(
            [(outcomes or {}).get((shard.view, i), 1) for i in range(shard.start, shard.stop)],
            np.uint8,
        )
        writer.write(shard, {tap.name: rows_of(tap, shard) for tap in writer.layout.taps}, outcome)


def contents(location: Path) -> dict[str, bytes]:
    """Every file of a store, temporary ones too; without the time in the manifest, and without the
    manifest's digest of itself, which depends on it.
    """
    files = {
        path.relative_to(location).as_posix(): path.read_bytes()
        for path in location.rglob("*")
        if path.is_file()
    }
    if "zarr.json" in files:
        lines = files["zarr.json"].splitlines()
        mine = (b'"created"', b'"root"')
        files["zarr.json"] = b"\n".join(line for line in lines if not line.strip().startswith(mine))
    return files


def _numbers(layout: StoreLayout) -> range:
    return range(layout.samples)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A complete store with every kind of tap and every dtype."""
    writer = begin(tmp_path / "store")
    fill(writer)
    return writer.commit({})


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Store]:
    """Build another complete store, below a folder that may be named."""

    def build_store(
        place: str = "another",
        layout: StoreLayout = LAYOUT,
        outcomes: Mapping[tuple[int, int], int] | None = None,
        **changes: Any,
    ) -> Store:
        writer = begin(tmp_path / place, layout, **changes)
        fill(writer, outcomes)
        return writer.commit({})

    return build_store
