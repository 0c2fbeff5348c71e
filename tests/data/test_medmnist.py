"""MedMNIST: every set from its file, in its own splits, with one or several labels an image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rdcache.data import (
    DatasetSpec,
    ImageDataset,
    dataset_names,
    describe_problems,
    list_datasets,
    load_dataset,
    medmnist_files,
)
from rdcache.data.medmnist import SETS
from rdcache.errors import DatasetError, DatasetNotFoundError

COUNTS = {"train": 20, "val": 6, "test": 8}
Write = Callable[..., dict[str, np.ndarray]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a file of random images; arguments are arrays that are to be otherwise."""

    def write_file(name: str, classes: int, findings: int = 1, **changes: Any) -> Any:
        random = np.random.default_rng(0)
        arrays: dict[str, np.ndarray] = {}
        for split, count in COUNTS.items():
            arrays[f"{split}_images"] = random.integers(0, 256, (count, 28, 28), np.uint8)
            every = np.arange(count * findings) % classes  # each class in each split
            arrays[f"{split}_labels"] = every.reshape(count, findings).astype(np.uint8)
        arrays = {key: it for key, it in {**arrays, **changes}.items() if it is not None}
        place = tmp_path / "data" / "medmnist" / f"{name}.npz"
        place.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(place, **arrays)
        return arrays

    return write_file


def test_images_labels_and_splits_are_those_of_the_file(write: Write) -> None:
    arrays = write("pneumoniamnist", 2)
    dataset = load_dataset("pneumoniamnist")
    assert dataset.classes == ("normal", "pneumonia")
    assert (len(dataset), dataset.task, dataset.findings) == (34, "multiclass", 0)
    for index, sample in enumerate(dataset.samples):
        number = int(sample.path.name)
        stored = arrays[f"{sample.split}_images"][number]
        np.testing.assert_array_equal(dataset.decode(index), np.stack([stored] * 3, axis=2))
        assert sample.label == arrays[f"{sample.split}_labels"][number, 0]
        assert sample.size == (28, 28)
    assert [int((dataset.splits == split).sum()) for split in COUNTS] == [20, 6, 8]


def test_a_small_official_validation_split_is_left_as_it_is(write: Write) -> None:
    """BreastMNIST has 78 images of validation; other datasets get some of train in addition."""
    write("breastmnist", 2)
    assert int((load_dataset("breastmnist").splits == "val").sum()) == 6


def test_colours_and_sizes_are_read(write: Write) -> None:
    large = {
        f"{split}_images": np.random.default_rng(1).integers(0, 256, (n, 64, 64, 3), np.uint8)
        for split, n in COUNTS.items()
    }
    write("bloodmnist_64", 8, **large)
    dataset = load_dataset("bloodmnist_64")
    assert dataset.decode(0).shape == (64, 64, 3)
    assert dataset.name == "bloodmnist_64"


def test_several_findings_of_a_chest_are_a_label_each(write: Write) -> None:
    arrays = write("chestmnist", 2, findings=14)
    dataset = load_dataset("chestmnist")
    assert dataset.task == "multilabel"
    assert dataset.labels.shape == (34, 14)
    assert dataset.labels.dtype == np.int64
    for sample, row in zip(dataset.samples, dataset.labels, strict=True):
        truth = arrays[f"{sample.split}_labels"][int(sample.path.name)]
        assert row.tolist() == truth.tolist()
    positive = {split: arrays[f"{split}_labels"].sum(axis=0).tolist() for split in COUNTS}
    assert {split: list(own.values()) for split, own in dataset.counts().items()} == positive


@pytest.mark.parametrize("the_set", SETS, ids=lambda it: it.name)
def test_every_set_opens_by_its_name(write: Write, the_set: Any) -> None:
    findings = len(the_set.classes) if the_set.task == "multilabel" else 1
    write(the_set.name, 2 if findings > 1 else min(len(the_set.classes), 6), findings)
    dataset = load_dataset(the_set.name)
    assert dataset.classes == the_set.classes
    assert dataset.symmetry == the_set.symmetry


def test_files_are_found_where_medmnist_puts_them(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("retinamnist", 5)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "data" / "medmnist").rename(tmp_path / "home" / ".medmnist")
    assert len(load_dataset("retinamnist")) == 34
    (card,) = [card for card in list_datasets() if card.name == "retinamnist"]
    assert card.present


def test_without_a_home_only_the_data_folder_is_looked_into(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(path: Path) -> Path:
        if path.parts[:1] == ("~",):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", nobody)
    write("retinamnist", 5)
    present = {card.name for card in list_datasets() if card.present}
    assert "retinamnist" in present
    assert "bloodmnist" not in present


def test_other_sizes_are_names_but_not_listed(tmp_path: Path) -> None:
    listed = {card.name for card in list_datasets()}
    assert {it.name for it in SETS} <= listed
    assert "pathmnist_224" in set(dataset_names()) - listed
    with pytest.raises(DatasetNotFoundError, match="is not there") as caught:
        load_dataset("pathmnist_224")
    text = str(caught.value)
    assert str(tmp_path / "data" / "medmnist" / "pathmnist_224.npz") in text
    assert "zenodo.org" in text


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"test_images": None}, "lacks"),
        ({"val_labels": np.zeros((5, 1), np.uint8)}, "val_labels is"),
        ({"train_labels": np.zeros((20, 1), np.float32)}, "train_labels is float32"),
        ({"train_images": np.zeros((20, 28, 28), np.int16)}, "train_images is int16"),
        ({"train_images": np.array([object()] * 20)}, ""),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(
    changes: dict[str, Any], why: str, write: Write
) -> None:
    write("pneumoniamnist", 2, **changes)
    with pytest.raises(DatasetError, match="no file of MedMNIST") as caught:
        load_dataset("pneumoniamnist")
    assert why in caught.value.facts["why"]


@pytest.mark.parametrize("content", [b"", b"rubbish", b"PK\x03\x04 and no more"])
def test_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    place = tmp_path / "data" / "medmnist" / "bloodmnist.npz"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    with pytest.raises(DatasetError, match="no file of MedMNIST"):
        load_dataset("bloodmnist")


@pytest.mark.parametrize("place_of_damage", [2000, 9000])
def test_images_that_cannot_be_unpacked_are_said_once(
    place_of_damage: int, write: Write, tmp_path: Path
) -> None:
    write("pneumoniamnist", 2)
    place = tmp_path / "data" / "medmnist" / "pneumoniamnist.npz"
    data = bytearray(place.read_bytes())
    begin = data.index(b"train_images.npy") + place_of_damage
    data[begin : begin + 500] = b"\xff" * 500
    place.write_bytes(data)
    with pytest.raises(DatasetError, match=r"cannot be unpacked|it is damaged"):
        load_dataset("pneumoniamnist")


def test_the_file_of_another_set_is_noticed(write: Write) -> None:
    write("pneumoniamnist", 8)
    with pytest.raises(DatasetError, match="not those of the set") as caught:
        load_dataset("pneumoniamnist")
    assert "from 0 to 1" in caught.value.facts["expected"]


def test_volumes_are_no_images(write: Write) -> None:
    volumes = {
        f"{split}_images": np.zeros((n, 28, 28, 28), np.uint8) for split, n in COUNTS.items()
    }
    write("organamnist", 2, **volumes)
    with pytest.raises(DatasetError, match="holds no images"):
        load_dataset("organamnist")


def test_a_file_that_changes_is_noticed(write: Write) -> None:
    write("pneumoniamnist", 2)
    dataset = load_dataset("pneumoniamnist")
    write("pneumoniamnist", 2, train_images=np.zeros((20, 28, 28), np.uint8))
    with pytest.raises(DatasetError, match="has changed"):
        dataset.decode(0)


def test_images_that_no_memory_holds_are_refused_before_they_are_unpacked(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("pneumoniamnist", 2)
    monkeypatch.setattr(medmnist_files, "memory_limit", lambda: 1000)
    with pytest.raises(DatasetError, match="do not fit into memory") as caught:
        load_dataset("pneumoniamnist")
    assert "_64" in caught.value.facts["next"]


@pytest.mark.real_data
def test_the_real_pneumoniamnist_has_its_published_numbers(
    load_real: Callable[[DatasetSpec], ImageDataset],
) -> None:
    dataset = load_real(DatasetSpec("pneumoniamnist"))
    sizes = [int((dataset.splits == split).sum()) for split in COUNTS]
    assert sizes == [4708, 524, 624]
    assert any("exact duplicate pairs" in line for line in describe_problems(dataset))
