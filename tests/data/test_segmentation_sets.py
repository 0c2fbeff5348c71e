"""Segmentations of the catalogue, in the layouts in which they are published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdcache.data import DatasetSpec, ImageDataset, describe_masks, list_datasets, load_dataset
from rdcache.errors import DatasetNotFoundError

HEIGHT, WIDTH = 14, 20


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """The data folder that tests find without an option."""
    return tmp_path / "data"


@pytest.fixture
def write(data: Path) -> Callable[..., None]:
    """Writes different noise images under these paths below the data folder."""
    random = np.random.default_rng(0)

    def write_images(*paths: str) -> None:
        for path in paths:
            (data / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(data / path)

    return write_images


@pytest.fixture
def mask(data: Path) -> Callable[..., None]:
    """Writes a mask: a number in these columns, 0 elsewhere."""

    def write_mask(path: str, columns: slice = slice(0, 5), value: int = 255) -> None:
        (data / path).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((HEIGHT, WIDTH), np.uint8)
        pixels[:, columns] = value
        Image.fromarray(pixels).save(data / path, quality=95)

    return write_mask


def foreground(dataset: ImageDataset, name: str) -> list[int]:
    """Columns that the mask of this file marks."""
    (index,) = [i for i, sample in enumerate(dataset.samples) if sample.path.name == name]
    return np.flatnonzero(dataset.decode_mask(index).any(axis=0)).tolist()


@pytest.fixture
def busi(write: Callable[..., None], mask: Callable[..., None]) -> None:
    for name in ("benign", "malignant", "normal"):
        for number in range(1, 11):
            stem = f"busi/Dataset_BUSI_with_GT/{name}/{name} ({number})"
            write(f"{stem}.png")
            mask(f"{stem}_mask.png", slice(0, 0 if name == "normal" else 5), 1)
    mask("busi/Dataset_BUSI_with_GT/benign/benign (1)_mask_1.png", slice(12, 14), 1)


def test_busi_merges_masks_and_keeps_normal_images_with_empty_ones(busi: None) -> None:
    dataset = load_dataset("busi-seg")
    assert (dataset.task, dataset.classes) == ("segmentation", ("background", "lesion"))
    assert len(dataset) == 30
    assert foreground(dataset, "benign (1).png") == [0, 1, 2, 3, 4, 12, 13]
    assert foreground(dataset, "benign (10).png") == [0, 1, 2, 3, 4]
    assert foreground(dataset, "normal (3).png") == []
    assert "10 of 30 masks are empty" in describe_masks(dataset)


def test_drawn_splits_of_busi_are_balanced_by_class_and_those_of_the_classification(
    busi: None,
) -> None:
    dataset, classified = load_dataset("busi-seg"), load_dataset("busi")
    test = dataset.labels[dataset.splits == "test"]
    assert np.bincount(test).tolist() == [2, 2, 2]
    assert list(dataset.uids) == list(classified.uids)
    assert list(dataset.splits) == list(classified.splits)
    assert dataset.digest != classified.digest


def test_busi_without_normal_images_has_no_empty_masks(busi: None) -> None:
    dataset = load_dataset("busi-seg-lesions")
    assert len(dataset) == 20
    assert describe_masks(dataset)[-1] == "no mask is empty"


def test_an_image_of_busi_without_its_mask_is_named(busi: None, data: Path) -> None:
    (data / "busi/Dataset_BUSI_with_GT/benign/benign (7)_mask.png").unlink()
    (skipped,) = load_dataset("busi-seg").skipped
    assert (skipped.path, skipped.reason) == ("benign/benign (7).png", "it has no mask")


def test_isic_takes_images_and_masks_and_leaves_superpixels(
    data: Path, write: Callable[..., None], mask: Callable[..., None]
) -> None:
    number = 0
    for title in ("Training", "Validation", "Test"):
        folder = data / "isic-seg" / f"ISIC2018_Task1-2_{title}_Input"
        for _ in range(4):
            stem = f"ISIC_{number:07}"
            number += 1
            write(f"isic-seg/{folder.name}/{stem}.jpg")
            write(f"isic-seg/{folder.name}/{stem}_superpixels.png")
            mask(f"isic-seg/ISIC2018_Task1_{title}_GroundTruth/{stem}_segmentation.png")
        (folder / "ATTRIBUTION.txt").write_text("…")
        (folder / "metadata.csv").write_text("…")
    dataset = load_dataset("isic-seg")
    assert len(dataset) == 12
    assert not dataset.skipped
    assert int((dataset.splits == "test").sum()) == 4
    assert dataset.symmetry == "d4"


def test_isic_without_its_official_test_is_not_split_otherwise(
    write: Callable[..., None], mask: Callable[..., None]
) -> None:
    for number in range(4):
        write(f"isic-seg/ISIC2018_Task1-2_Training_Input/ISIC_{number}.jpg")
        mask(f"isic-seg/ISIC2018_Task1_Training_GroundTruth/ISIC_{number}_segmentation.png")
    with pytest.raises(DatasetNotFoundError, match="official test") as caught:
        load_dataset("isic-seg")
    assert "ISIC2018_Task1-2_Test_Input" in caught.value.facts["looked for"]


def test_kvasir_divides_its_jpeg_masks_at_half(
    write: Callable[..., None], mask: Callable[..., None]
) -> None:
    for number in range(10):
        write(f"kvasir-seg/Kvasir-SEG/images/{number}.jpg")
        mask(f"kvasir-seg/Kvasir-SEG/masks/{number}.jpg")
    dataset = load_dataset("kvasir-seg")
    assert dataset.classes == ("background", "polyp")
    assert foreground(dataset, "4.jpg") == [0, 1, 2, 3, 4]
    assert sorted(set(dataset.splits)) == ["test", "train", "val"]


def test_fives_has_official_folders_and_is_balanced_by_disease(
    write: Callable[..., None], mask: Callable[..., None]
) -> None:
    for split, count in (("train", 40), ("test", 8)):
        for number in range(count):
            name = f"{number + 1}_{'ADGN'[number % 4]}.png"
            write(f"fives/{split}/Original/{name}")
            mask(f"fives/{split}/Ground truth/{name}")
    dataset = load_dataset("fives")
    assert int((dataset.splits == "test").sum()) == 8
    assert np.bincount(dataset.labels).tolist() == [12] * 4
    assert np.ptp(np.bincount(dataset.labels[dataset.splits == "val"])) == 0


def test_the_phantom_is_segmented_as_it_is_drawn() -> None:
    dataset = load_dataset("phantom-seg")
    assert (len(dataset), dataset.task) == (600, "segmentation")
    names = {sample.name: index for index, sample in enumerate(dataset.samples)}
    assert not dataset.decode_mask(names["normal/000"]).any()
    index = names["malignant/007"]
    image, mask = dataset.decode(index), dataset.decode_mask(index)
    assert mask.shape == image.shape[:2]
    assert 0 < mask.sum() == dataset.samples[index].mask_counts[1]
    assert image[mask == 1].mean() < image[mask == 0].mean()  # lesions are dark


@pytest.mark.parametrize("name", ["busi-seg", "isic-seg", "kvasir-seg", "fives"])
def test_what_is_not_there_says_where_it_is_from(name: str, data: Path) -> None:
    (card,) = [card for card in list_datasets(data) if card.name == name]
    assert (card.task, card.present) == ("segmentation", False)
    with pytest.raises(DatasetNotFoundError, match="is not there") as caught:
        load_dataset(name)
    assert card.layout in str(caught.value)


@pytest.mark.real_data
def test_the_real_busi_has_its_published_masks(
    load_real: Callable[[DatasetSpec], ImageDataset],
) -> None:
    dataset = load_real(DatasetSpec("busi-seg"))
    assert (len(dataset), len(dataset.skipped)) == (780, 0)
    assert sum(len(sample.masks) for sample in dataset.samples) == 798
    assert sum(not sample.mask_counts[1] for sample in dataset.samples) == 133
    for index in range(0, 780, 97):
        assert dataset.decode_mask(index).shape == dataset.decode(index).shape[:2]
