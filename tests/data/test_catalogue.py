"""The five datasets of the paper load from the layouts their users have."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rdcache.data import DatasetSpec, ImageDataset, list_datasets, load_dataset
from rdcache.errors import DatasetError, DatasetNotFoundError, UnknownNameError

Write = Callable[..., None]
BTC = ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor")
CHESTXRAY = ("COVID19", "NORMAL", "PNEUMONIA", "TURBERCULOSIS")
ISIC = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def write(data: Path) -> Write:
    """Writes different tiny images under these paths below the data folder."""
    random = np.random.default_rng(0)

    def write_images(*paths: str) -> None:
        for path in paths:
            file = data / path
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (12, 10), np.uint8)).save(file)

    return write_images


def rows(dataset: ImageDataset, root: Path) -> dict[str, tuple[str, str]]:
    """Path → (class, split)."""
    return {
        s.path.relative_to(root).as_posix(): (dataset.classes[s.label], s.split)
        for s in dataset.samples
    }


@pytest.mark.parametrize("place", ["busi", "busi/Dataset_BUSI_with_GT", "Dataset_BUSI_with_GT"])
def test_busi_leaves_masks_out(place: str, data: Path, write: Write) -> None:
    for name in ("benign", "malignant", "normal"):
        for number in (1, 2, 3):
            stem = f"{place}/{name}/{name} ({number})"
            write(f"{stem}.png", f"{stem}_mask.png", f"{stem}_mask_1.png")
    dataset = load_dataset("busi", data)
    assert dataset.classes == ("benign", "malignant", "normal")
    assert set(rows(dataset, data / place)) == {
        f"{name}/{name} ({number}).png"
        for name in ("benign", "malignant", "normal")
        for number in (1, 2, 3)
    }
    assert dataset.symmetry == "hflip"


@pytest.mark.parametrize("unzipped", ["{}", "{}/{}"])
def test_covid_follows_the_official_lists_even_where_a_suffix_differs(
    unzipped: str, data: Path, write: Write
) -> None:
    images = data / "covid/Images-processed"
    for name, short in {"CT_COVID": "COVID", "CT_NonCOVID": "NonCOVID"}.items():
        inside = f"covid/Images-processed/{unzipped.format(name, name)}"
        for split in ("train", "val", "test"):
            write(f"{inside}/{split} 1%0.png", f"{inside}/{split}2.jpg", f"{inside}/unlisted.png")
            listed = [f"{split} 1%0.png", f"{split}2.png", "", f"{split}-gone.png"]
            file = data / f"covid/Data-split/{short}/{split}CT_{short}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\r\n".join(listed))
    dataset = load_dataset("covid", data)
    found = rows(dataset, images)
    assert len(found) == 12
    inside = unzipped.format("CT_COVID", "CT_COVID")
    assert found[f"{inside}/test 1%0.png"] == ("CT_COVID", "test")
    assert found[f"{inside}/train2.jpg"][0] == "CT_COVID"
    assert dataset.classes == ("CT_COVID", "CT_NonCOVID")
    assert len(dataset.skipped) == 6
    assert dataset.skipped[0].path == "CT_COVID/train-gone.png"
    assert dataset.skipped[0].reason == "listed, but there is no file (in trainCT_COVID.txt)"
    with pytest.raises(DatasetError, match="6 files of covid cannot be used"):
        load_dataset("covid", data, strict=True)


def test_btc_keeps_its_two_folders(data: Path, write: Write) -> None:
    for name in BTC:
        write(*[f"btc/Training/{name}/gg ({number}).jpg" for number in range(10)])
        write(f"btc/Testing/{name}/image(1).jpg", f"btc/Testing/{name}/._image(1).jpg")
    dataset = load_dataset("btc", data)
    found = rows(dataset, data / "btc")
    assert dataset.classes == BTC
    assert {path for path, (_, split) in found.items() if split == "test"} == {
        f"Testing/{name}/image(1).jpg" for name in BTC
    }
    assert dataset.counts()["val"] == dict.fromkeys(BTC, 2)


@pytest.mark.parametrize(("present", "absent"), [("Training", "Testing"), ("Testing", "Training")])
def test_half_of_btc_is_not_split_otherwise(
    present: str, absent: str, data: Path, write: Write
) -> None:
    write(*[f"btc/{present}/{name}/{number}.jpg" for name in BTC for number in range(4)])
    with pytest.raises(DatasetNotFoundError, match="images of btc are not there") as caught:
        load_dataset("btc", data)
    assert caught.value.facts["looked for"] == str(data / "btc" / absent)


def test_an_official_test_folder_of_unreadable_images_is_not_replaced(
    data: Path, write: Write
) -> None:
    write(*[f"btc/Training/{name}/{number}.jpg" for name in BTC for number in range(4)])
    write("btc/Testing/no_tumor/image(1).jpg")
    (data / "btc/Testing/no_tumor/image(1).jpg").write_bytes(b"not an image")
    with pytest.raises(DatasetNotFoundError, match="official test images"):
        load_dataset("btc", data)


def test_chestxray_keeps_its_folders_spelling_and_patients(data: Path, write: Write) -> None:
    for name in CHESTXRAY:
        write(*[f"chestxray/train/{name}/{name}{number}.png" for number in range(10)])
        write(f"chestxray/val/{name}/v.png", f"chestxray/test/{name}/t.png")
    for patient in range(4):
        stem = f"chestxray/train/PNEUMONIA/person{patient}"
        write(*[f"{stem}_bacteria_{number}.jpeg" for number in range(3)], f"{stem}_virus_7.jpeg")
    dataset = load_dataset("chestxray", data)
    assert dataset.classes == CHESTXRAY
    assert dataset.symmetry == "none"  # the heart is on the left
    found = rows(dataset, data / "chestxray")
    assert found["test/TURBERCULOSIS/t.png"] == ("TURBERCULOSIS", "test")
    assert found["val/TURBERCULOSIS/v.png"] == ("TURBERCULOSIS", "val")
    assert dataset.counts()["test"] == dict.fromkeys(CHESTXRAY, 1)
    assert dataset.counts()["val"]["NORMAL"] == 3  # topped up from train
    for patient in range(4):
        own = {s for path, (_, s) in found.items() if f"person{patient}_bacteria" in path}
        assert len(own) == 1
    groups = {s.group for s in dataset.samples}
    assert groups >= {None, "person0_bacteria", "person0_virus"}
    assert len(groups) == 9


def write_isic_truth(data: Path, split: str, images: dict[str, str]) -> Path:
    stem = f"ISIC2018_Task3_{split}_GroundTruth"
    file = data / "isic" / stem / f"{stem}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [",".join(("image", *ISIC))]
    for image, diagnosis in images.items():
        one_hot = ["1.0" if diagnosis == name else "0.0" for name in ISIC]
        lines.append(",".join((image, *one_hot)))
    file.write_text("\n".join(lines))
    return file


@pytest.fixture
def challenge(data: Path, write: Write) -> Path:
    """ISIC 2018 as the challenge gives it; two training images of each lesion."""
    for split, count in {"Training": 42, "Validation": 7, "Test": 7}.items():
        images = {f"ISIC_{split[:2]}{number}": ISIC[number % 7] for number in range(count)}
        write(*[f"isic/ISIC2018_Task3_{split}_Input/{image}.jpg" for image in images])
        write_isic_truth(data, split, images)
    lesions = [f"ISIC_Tr{number},HAM_{number % 21},serial" for number in range(42)]
    lines = ["image,lesion_id,diagnosis_confirm_type", *lesions]
    groupings = "ISIC2018_Task3_Training_LesionGroupings.csv"
    # Many users put it beside the ground truth, where it must not be taken for it.
    (data / "isic/ISIC2018_Task3_Training_GroundTruth" / groupings).write_text("\n".join(lines))
    return data


def test_isic_of_the_challenge_keeps_its_splits_and_its_lesions_whole(challenge: Path) -> None:
    dataset = load_dataset("isic", challenge)
    assert dataset.classes == ISIC
    assert dataset.symmetry == "d4"
    assert dataset.counts()["test"] == dict.fromkeys(ISIC, 1)
    assert not dataset.skipped
    assert dataset.leaks.straddling_groups == 0
    assert len({s.group for s in dataset.samples}) == 22  # 21 lesions, and none
    labels = {s.path.stem: dataset.classes[s.label] for s in dataset.samples}
    assert labels["ISIC_Tr3"] == "AKIEC"


def test_isic_validation_images_without_ground_truth_are_reported(challenge: Path) -> None:
    stem = "ISIC2018_Task3_Validation"
    (challenge / f"isic/{stem}_GroundTruth/{stem}_GroundTruth.csv").unlink()
    (skipped,) = load_dataset("isic", challenge).skipped
    assert skipped.path == f"{stem}_Input"
    assert skipped.reason == f"its images have no table ({stem}_GroundTruth.csv)"


def test_isic_without_its_test_images_or_their_ground_truth_is_not_split_otherwise(
    challenge: Path,
) -> None:
    stem = "ISIC2018_Task3_Test"
    truth = challenge / f"isic/{stem}_GroundTruth/{stem}_GroundTruth.csv"
    truth.unlink()
    with pytest.raises(DatasetNotFoundError) as caught:
        load_dataset("isic", challenge)
    assert caught.value.facts["looked for"] == str(truth)
    shutil.rmtree(challenge / f"isic/{stem}_Input")
    with pytest.raises(DatasetNotFoundError) as caught:
        load_dataset("isic", challenge)
    assert caught.value.facts["looked for"] == str(challenge / f"isic/{stem}_Input")


@pytest.mark.parametrize("diagnosis", ["SCC", ""])
def test_isic_rows_that_name_no_class_are_errors_with_their_line(
    diagnosis: str, challenge: Path
) -> None:
    write_isic_truth(challenge, "Test", {"ISIC_Te0": "MEL", "ISIC_Te1": diagnosis})
    with pytest.raises(DatasetError, match="exactly one class") as caught:
        load_dataset("isic", challenge)
    assert caught.value.facts["line"] == "3"


@pytest.mark.parametrize(
    "folders", [("HAM10000_images_part_1", "HAM10000_images_part_2"), ("images",) * 2]
)
@pytest.mark.parametrize("metadata", ["HAM10000_metadata.csv", "HAM10000_metadata"])
def test_isic_from_ham10000_is_split_by_lesion(
    folders: tuple[str, str], metadata: str, data: Path, write: Write
) -> None:
    lines = ["lesion_id,image_id,dx,dx_type,age,sex,localization"]
    for number in range(70):
        image, diagnosis = f"ISIC_{number:07}", ISIC[number % 7].lower()
        write(f"ham10000/{folders[number % 2]}/{image}.jpg")
        lines.append(f"HAM_{number % 35},{image},{diagnosis},histo,45.0,male,trunk")
    lines.append("HAM_99,ISIC_9999999,nv,histo,45.0,male,trunk")
    (data / "ham10000" / metadata).write_text("\n".join(lines))
    dataset = load_dataset("isic", data)
    assert len(dataset) == 70
    assert dataset.counts()["test"] == dict.fromkeys(ISIC, 2)
    assert dataset.leaks.straddling_groups == 0
    assert {s.group for s in dataset.samples} == {f"HAM_{number}" for number in range(35)}
    assert [s.path for s in dataset.skipped] == ["ISIC_9999999"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("lesion_id,image_id,dx\nHAM_1,ISIC_1,wart\n", "'wart' is no diagnosis"),
        ("lesion_id,image_id,diagnosis\nHAM_1,ISIC_1,nv\n", "no column 'dx'"),
        ("", "cannot be read"),
    ],
)
def test_isic_metadata_that_makes_no_sense_is_an_error(
    table: str, message: str, data: Path, write: Write
) -> None:
    write("ham10000/images/ISIC_1.jpg")
    (data / "ham10000" / "HAM10000_metadata.csv").write_text(table)
    with pytest.raises(DatasetError, match=message):
        load_dataset("isic", data)


@pytest.mark.parametrize("name", ["btc", "busi", "chestxray", "covid", "isic"])
def test_a_missing_or_empty_folder_says_what_belongs_there_and_where_it_is_from(
    name: str, data: Path
) -> None:
    (card,) = [card for card in list_datasets(data) if card.name == name]
    assert not card.present
    with pytest.raises(DatasetNotFoundError, match="is not there") as missing:
        load_dataset(name, data)
    (data / name).mkdir(parents=True)
    with pytest.raises(DatasetNotFoundError, match="holds no images") as empty:
        load_dataset(name, data)
    for caught in (missing, empty):
        text = str(caught.value)
        for part in (str(data / name), card.layout, card.source, card.licence, "--data-dir"):
            assert part in text
    assert {card.name: card.present for card in list_datasets(data)}[name]


def test_a_folder_that_unpacking_added_does_no_harm(data: Path, write: Write) -> None:
    for name in ("benign", "malignant", "normal"):
        for number in range(6):
            write(f"busi/archive/Dataset_BUSI_with_GT/{name}/{name} ({number}).png")
    assert len(load_dataset("busi")) == 18


def test_covid_without_its_official_lists_is_not_split_otherwise(data: Path, write: Write) -> None:
    for name in ("CT_COVID", "CT_NonCOVID"):
        write(f"covid/Images-processed/{name}/1.png")
    with pytest.raises(DatasetNotFoundError, match=r"trainCT_COVID\.txt"):
        load_dataset("covid")


def test_an_unknown_name_is_answered_with_near_ones(data: Path) -> None:
    with pytest.raises(UnknownNameError, match="no dataset named 'bussi'") as caught:
        load_dataset("bussi", data)
    assert "busi" in caught.value.facts["did you mean"]
    with pytest.raises(UnknownNameError):
        load_dataset("folder:", data)


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "train_and_val", "test"),
    [("btc", 2870, 394), ("covid", 425 + 118, 203), ("busi", 624, 156), ("isic", 1307, 326)],
)
def test_the_real_sets_have_their_published_numbers(
    name: str, train_and_val: int, test: int, load_real: Callable[[DatasetSpec], ImageDataset]
) -> None:
    dataset = load_real(DatasetSpec(name))
    counts = {split: sum(own.values()) for split, own in dataset.counts().items()}
    assert len(dataset) == train_and_val + test
    assert not dataset.skipped
    if name in ("btc", "covid"):
        assert counts["test"] == test
    else:  # no official split, and lesions and duplicates are kept whole
        assert counts["test"] == pytest.approx(test, abs=5)
    if name == "covid":
        assert (counts["train"], counts["val"]) == (425, 118)
    assert dataset.leaks.straddling_groups == 0
