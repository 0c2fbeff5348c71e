"""Images of several findings: a label for each, and splits that keep the rare ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rdcache.data import ImageDataset, load_dataset, strata_of
from rdcache.errors import DatasetError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Forty images; every other one shows `effusion`, every eighth `nodule`, some neither."""
    random = np.random.default_rng(0)
    rows = ["path,labels"]
    for number in range(40):
        Image.fromarray(random.integers(0, 256, (12, 10), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
        own = [name for name, each in (("effusion", 2), ("nodule", 8)) if number % each == 0]
        rows.append(f"{number}.png,{'; '.join(own)}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    return tmp_path / "table.csv"


def load(table: Path) -> ImageDataset:
    return load_dataset(f"table:{table}")


def test_a_table_names_the_findings_of_each_image(table: Path) -> None:
    dataset = load(table)
    assert (dataset.task, dataset.classes) == ("multilabel", ("effusion", "nodule"))
    assert dataset.labels.shape == (40, 2)
    for sample, row in zip(dataset.samples, dataset.labels, strict=True):
        number = int(sample.path.stem)
        assert row.tolist() == [number % 2 == 0, number % 8 == 0]
    assert dataset.findings == 2


def test_drawn_splits_are_balanced_by_the_rarest_finding(table: Path) -> None:
    dataset = load(table)
    counts = dataset.counts()
    assert counts["test"] == {"effusion": 4, "nodule": 1}
    assert sum(own["nodule"] for own in counts.values()) == 5


def test_the_digest_tells_findings_apart(table: Path) -> None:
    before = load(table)
    rows = table.read_text().splitlines()
    rows[2] = "1.png,nodule"
    table.write_text("\n".join(rows))
    after = load(table)
    assert after.digest != before.digest
    assert set(after.uids) == set(before.uids)


def test_a_table_with_one_label_each_stays_one_of_classes(table: Path) -> None:
    rows = [f"{number}.png,{'xy'[number % 2]},a;b" for number in range(12)]
    table.write_text("\n".join(["path,label,labels", *rows]))
    dataset = load(table)
    assert (dataset.task, dataset.classes) == ("multiclass", ("x", "y"))


def test_no_finding_at_all_is_nothing_to_learn(table: Path) -> None:
    table.write_text("path,labels\n0.png,\n1.png,\n")
    with pytest.raises(DatasetError, match="nothing to find"):
        load(table)


def test_a_finding_that_only_the_test_shows_is_an_error(table: Path) -> None:
    table.write_text("path,labels,split\n0.png,a,train\n1.png,,train\n2.png,b;a,test\n")
    with pytest.raises(DatasetError, match="'b' has no training image"):
        load(table)


def test_strata_of_class_numbers_are_these() -> None:
    assert strata_of(np.array([2, 0, 1])).tolist() == [2, 0, 1]


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(
            st.lists(st.integers(0, 1), min_size=width, max_size=width), min_size=1, max_size=30
        )
    )
)
def test_the_stratum_is_the_rarest_finding_that_a_sample_has(rows: list[list[int]]) -> None:
    labels = np.array(rows)
    totals = labels.sum(axis=0)
    for row, stratum in zip(rows, strata_of(labels).tolist(), strict=True):
        own = [number for number, there in enumerate(row) if there]
        if own:
            assert stratum - 1 in own
            assert totals[stratum - 1] == min(totals[number] for number in own)
        else:
            assert stratum == 0
