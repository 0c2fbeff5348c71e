"""A multi-label store has one label for each finding, and keeps them through every copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray

from rdcache.errors import StoreFormatError
from rdcache.store import Fingerprint, Store, StoreLayout, open_store
from rdcache.store.hdf5_export import export_hdf5
from rdcache.store.hdf5_import import import_hdf5
from rdcache.store.joint import JointStore
from rdcache.store.transfer import Part, copy_store

from .conftest import LAYOUT, begin, contents, sample_table

FINDINGS = replace(LAYOUT, findings=3)
Build = Callable[..., Store]


@pytest.fixture
def multilabel(build: Build) -> Store:
    return build("findings", FINDINGS)


def test_labels_come_back_with_a_column_for_each_finding(multilabel: Store) -> None:
    assert multilabel.labels.shape == (10, 3)
    assert multilabel.labels.dtype == np.int64
    assert multilabel.labels.tolist() == sample_table(FINDINGS).labels.tolist()
    columns = xarray.open_zarr(str(multilabel.location), consolidated=False)
    assert columns["label"].dims == ("sample", "finding")
    assert columns["label"].to_numpy().tolist() == multilabel.labels.tolist()


def test_a_store_of_class_numbers_says_nothing_of_findings(store: Store) -> None:
    assert "findings" not in store.manifest["layout"]
    assert store.labels.shape == (10,)


def test_an_export_brings_them_back_byte_for_byte(multilabel: Store, tmp_path: Path) -> None:
    export_hdf5(multilabel, tmp_path / "out.h5")
    there, _ = import_hdf5(tmp_path / "out.h5", tmp_path / "there")
    assert there.labels.tolist() == multilabel.labels.tolist()
    assert contents(tmp_path / "there") == contents(multilabel.location)


def test_a_part_has_the_labels_of_its_samples(build: Build, tmp_path: Path) -> None:
    facts = {"dataset": {"name": "invented", "counts": {}}, "teacher": {"name": "nobody"}}
    source = build("source", FINDINGS, facts=facts)
    part = copy_store(source.location, tmp_path / "part", Part(splits=("val", "test"))).store
    assert part.labels.tolist() == source.labels[6:].tolist()


def test_stores_read_in_step_have_the_same_findings(build: Build) -> None:
    stores = [
        build(
            name,
            FINDINGS,
            fingerprint=Fingerprint({"teacher": name}),
            facts={
                "dataset": {"name": "invented", "classes": ["a", "b", "c"], "digest": "0"},
                "teacher": {"name": name, "default_tap": "pooled", "weights": {}},
                "views": {"kind": "random", "count": 3},
            },
        )
        for name in ("one", "two")
    ]
    joint = JointStore(stores)
    assert joint.layout.findings == 3
    assert joint.labels.tolist() == stores[0].labels.tolist()


@pytest.mark.parametrize("layout", [LAYOUT, replace(LAYOUT, findings=2)], ids=["class", "two"])
def test_labels_of_another_shape_than_the_layout_are_refused(
    layout: StoreLayout, tmp_path: Path
) -> None:
    with pytest.raises(StoreFormatError, match="samples"):
        begin(tmp_path / "store", layout, samples=sample_table(FINDINGS))


def test_a_finding_that_is_neither_there_nor_absent_is_refused(tmp_path: Path) -> None:
    table = sample_table(FINDINGS)
    writer = begin(tmp_path / "store", FINDINGS, samples=replace(table, labels=table.labels + 1))
    with pytest.raises(StoreFormatError, match="0 or 1"):
        open_store(writer.location, allow_incomplete=True)


def test_a_negative_number_of_findings_is_refused() -> None:
    with pytest.raises(StoreFormatError):
        replace(LAYOUT, findings=-1)
