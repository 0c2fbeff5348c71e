"""Splits: official ones stand, the rest is drawn by class and seed, and no group is ever cut."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from rdcache.data import DatasetSpec, ImageDataset, load_dataset
from rdcache.data.splits import FEW, complete_splits

labels_of_classes = st.lists(st.integers(0, 3), min_size=1, max_size=300)
fractions = st.floats(0.05, 0.4)
seeds = st.integers(0, 1000)


def alone(count: int) -> list[str]:
    """Groups of one sample each."""
    return [f"{number:032x}" for number in range(count)]


def picture(seed: int) -> Image.Image:
    """A smooth random picture, unlike that of any other seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC).convert("RGB")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of thirty different pictures."""
    for label, name in enumerate(("a", "b")):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(30):
            path = tmp_path / "set" / name / f"{number}.png"
            picture(100 * label + number).save(path)
    return tmp_path / "set"


def splits_by_name(dataset: ImageDataset) -> dict[str, str]:
    return {f"{s.path.parent.name}/{s.path.name}": s.split for s in dataset.samples}


@settings(max_examples=80, deadline=None)
@given(labels=labels_of_classes, test=fractions, val=fractions, seed=seeds)
def test_each_class_gives_its_fraction(
    labels: list[int], test: float, val: float, seed: int
) -> None:
    splits = complete_splits([None] * len(labels), labels, alone(len(labels)), seed, val, test)
    for label in set(labels):
        counts = Counter(s for s, own in zip(splits, labels, strict=True) if own == label)
        assert counts["test"] == round(test * counts.total())
        assert counts["val"] == round(val * (counts.total() - counts["test"]))


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=1, max_size=200),
    seed=seeds,
)
def test_no_group_is_cut_and_no_split_exceeds_its_fraction(
    rows: list[tuple[int, int]], seed: int
) -> None:
    labels, groups = [label for label, _ in rows], [f"g{group}" for _, group in rows]
    splits = complete_splits([None] * len(rows), labels, groups, seed, 0.15, 0.2)
    where: dict[str, set[str]] = {}
    for split, group in zip(splits, groups, strict=True):
        where.setdefault(group, set()).add(split)
    assert all(len(found) == 1 for found in where.values())
    assert splits.count("test") <= 0.2 * len(rows) + 3 * 0.5


@settings(max_examples=60, deadline=None)
@given(
    official=st.lists(st.sampled_from(["train", "val", "test"]), min_size=1, max_size=300),
    seed=seeds,
)
def test_official_test_and_val_samples_stay(official: list[str], seed: int) -> None:
    official = [*official, "test"]
    labels = [number % 2 for number in range(len(official))]
    splits = complete_splits(official, labels, alone(len(official)), seed, 0.15, 0.2)
    for before, after in zip(official, splits, strict=True):
        assert after == before or (before, after) == ("train", "val")


def test_three_complete_official_splits_are_left_alone() -> None:
    official = ["train"] * 500 + ["val"] * FEW + ["test"] * 200
    labels = [number % 3 for number in range(len(official))]
    assert complete_splits(official, labels, alone(len(official)), 0, 0.15, 0.2) == official


def test_a_users_own_val_split_is_kept_however_small(tmp_path: Path) -> None:
    lines = ["path,label,split"]
    for number in range(30):
        picture(number).save(tmp_path / f"{number}.png")
        split = "val" if number < 4 else "test" if number < 10 else "train"
        lines.append(f"{number}.png,{number % 2},{split}")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    dataset = load_dataset(f"table:{tmp_path / 'table.csv'}")
    assert Counter(dataset.splits.tolist()) == {"train": 20, "val": 4, "test": 6}


def test_too_few_official_val_samples_are_topped_up_from_train_by_class() -> None:
    """As in ChestXray, whose 38 validation images tell nothing."""
    official = ["train"] * 400 + ["val"] * 38 + ["test"] * 80
    labels = [number % 4 for number in range(len(official))]
    splits = complete_splits(official, labels, alone(len(official)), 0, 0.15, 0.2)
    assert splits[400:] == official[400:]
    added = [label for label, split in zip(labels[:400], splits, strict=False) if split == "val"]
    assert Counter(added) == {0: 15, 1: 15, 2: 15, 3: 15}


def test_the_seed_decides_and_nothing_else() -> None:
    labels, groups = [number % 2 for number in range(200)], alone(200)

    def draw(seed: int, order: np.ndarray) -> dict[str, str]:
        names = [groups[i] for i in order]
        drawn = complete_splits([None] * 200, [labels[i] for i in order], names, seed, 0.15, 0.2)
        return dict(zip(names, drawn, strict=True))

    in_order, shuffled = np.arange(200), np.random.default_rng(0).permutation(200)
    assert draw(3, in_order) == draw(3, shuffled)
    assert draw(3, in_order) != draw(4, in_order)


def test_where_two_classes_share_a_group_the_order_of_rows_does_not_matter() -> None:
    labels = [0, 1] * 30
    groups = [f"pair{number // 2}" for number in range(60)]
    forward = complete_splits([None] * 60, labels, groups, 0, 0.15, 0.2)
    backward = complete_splits([None] * 60, labels[::-1], groups[::-1], 0, 0.15, 0.2)
    assert forward == backward[::-1]


def test_a_folder_is_split_4_to_1_and_the_same_each_time(folder: Path) -> None:
    dataset = load_dataset(f"folder:{folder}")
    assert dataset.counts() == {
        "train": {"a": 20, "b": 20},
        "val": {"a": 4, "b": 4},
        "test": {"a": 6, "b": 6},
    }
    assert list(dataset.splits) == sorted(dataset.splits, key=["train", "val", "test"].index)
    assert load_dataset(f"folder:{folder}").samples == dataset.samples
    other = load_dataset(DatasetSpec(f"folder:{folder}", seed=1))
    assert splits_by_name(other) != splits_by_name(dataset)
    assert other.counts() == dataset.counts()


@pytest.mark.parametrize("seed", range(5))
def test_exact_and_near_duplicates_are_drawn_together(folder: Path, seed: int) -> None:
    for number in range(10):
        exact, near = folder / "b" / f"exact{number}.bmp", folder / "a" / f"near{number}.jpg"
        Image.open(folder / "a" / f"{number}.png").save(exact)
        Image.open(folder / "a" / f"{number}.png").save(near, quality=60)
    dataset = load_dataset(DatasetSpec(f"folder:{folder}", seed=seed))
    where = splits_by_name(dataset)
    for number in range(10):
        same = {
            where[f"a/{number}.png"],
            where[f"b/exact{number}.bmp"],
            where[f"a/near{number}.jpg"],
        }
        assert len(same) == 1
    assert not dataset.leaks.leaked
    assert dataset.leaks.count("exact", across="classes") == 10
    assert len(set(where.values())) == 3
