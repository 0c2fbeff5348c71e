"""Datasets of volumes load from the layouts their users have."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np
import pytest
from click.testing import CliRunner

from rdcache.cli import cli
from rdcache.data import (
    DatasetSpec,
    VolumeDataset,
    describe_problems,
    list_datasets,
    load_dataset,
    require_volumes,
)
from rdcache.errors import DatasetError, DatasetNotFoundError, UsageError

AFFINE = np.diag([-0.8, 0.8, 2.5, 1.0])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def draw_case(folder: Path, image: str, mask: str, seed: int, top: int, channels: int = 1) -> None:
    """One case of 10×9×6 voxels whose mask holds all numbers up to `top`."""
    random = np.random.default_rng(seed)
    shape = (10, 9, 6) if channels == 1 else (10, 9, 6, channels)
    save(folder / image, random.normal(50, 30, shape).astype(np.float32))
    numbers = random.integers(0, top + 1, (10, 9, 6)).astype(np.uint8)
    numbers.flat[: top + 1] = np.arange(top + 1)
    save(folder / mask, numbers)


def make_task(
    data: Path,
    name: str = "Task09_Spleen",
    *,
    modality: dict[str, str] | None = None,
    cases: int = 10,
    channels: int = 1,
) -> Path:
    folder = data / "msd" / name
    for number in range(cases):
        case = f"case_{number:03}.nii.gz"
        draw_case(folder, f"imagesTr/{case}", f"labelsTr/{case}", number, 2, channels)
        (folder / "imagesTr" / f"._{case}").write_bytes(b"of macOS")
    facts = {
        "modality": modality or {"0": "CT"},
        "labels": {"0": "background", "1": "liver", "2": "tumour"},
    }
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def of_volumes(name: str, data: Path, **options: object) -> VolumeDataset:
    return require_volumes(load_dataset(DatasetSpec(name, **options), data))  # type: ignore[arg-type]


def test_a_task_of_the_decathlon_has_its_classes_and_drawn_splits(data: Path) -> None:
    make_task(data)
    dataset = of_volumes("msd:Task09_Spleen", data)
    assert dataset.classes == ("background", "liver", "tumour")
    assert (dataset.task, dataset.dimensions, dataset.channels) == ("segmentation", 3, 1)
    assert Counter(dataset.splits.tolist()) == {"train": 7, "test": 2, "val": 1}
    assert dataset.name == "msd:Task09_Spleen"
    volume = dataset.decode(0)
    assert volume.values.shape == (1, 6, 9, 10)
    np.testing.assert_allclose(volume.spacing, (2.5, 0.8, 0.8), rtol=1e-6)
    assert (volume.low.item(), volume.high.item()) == (-175, 250)
    assert describe_problems(dataset) == []


def test_several_modalities_are_channels_with_ranges_of_their_own(data: Path) -> None:
    make_task(data, "Task01_BrainTumour", modality={"0": "FLAIR", "1": "T1w"}, channels=2)
    dataset = of_volumes("msd:Task01_BrainTumour", data)
    assert dataset.channels == 2
    volume = dataset.decode(3)
    assert volume.low.shape == (2, 1, 1, 1)
    assert volume.low[0] != volume.low[1]
    assert dataset.facts()["channels"] == 2


def test_a_task_is_found_by_its_path_and_in_a_folder_of_its_own_name(data: Path) -> None:
    folder = make_task(data)
    inner = data / "msd" / "Task09_Spleen" / "Task09_Spleen"
    by_path = of_volumes(f"msd:{folder}", data)
    parts = sorted(folder.iterdir())
    inner.mkdir()
    for part in parts:
        part.rename(inner / part.name)
    nested = of_volumes("msd:Task09_Spleen", data)
    assert (nested.uids == by_path.uids).all()
    assert nested.name == by_path.name == "msd:Task09_Spleen"


def test_what_cannot_be_used_is_skipped_with_its_reason(data: Path) -> None:
    folder = make_task(data)
    images, masks = folder / "imagesTr", folder / "labelsTr"
    (masks / "case_000.nii.gz").unlink()
    save(masks / "case_001.nii.gz", np.full((10, 9, 6), 7, np.uint8))
    save(masks / "case_002.nii.gz", np.zeros((10, 9, 5), np.uint8))
    damaged = images / "case_003.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:300])
    save(images / "case_004.nii.gz", np.zeros((10, 9, 6, 2), np.float32))
    reasons = {
        skipped.path.removeprefix("imagesTr/"): skipped.reason
        for skipped in of_volumes("msd:Task09_Spleen", data).skipped
    }
    assert set(reasons) == {f"case_00{number}.nii.gz" for number in range(5)}
    for number, words in enumerate(
        ("no mask in labelsTr", "it holds 7", "10×9×5 voxels", "cut short", "2 channels")
    ):
        assert words in reasons[f"case_00{number}.nii.gz"]


def test_other_numbers_for_the_same_classes_are_another_look(data: Path) -> None:
    folder = make_task(data)
    for mask in (folder / "labelsTr").iterdir():
        numbers = np.asarray(nibabel.load(mask).dataobj)
        save(mask, np.where(numbers == 2, 5, numbers).astype(np.uint8))
    with pytest.raises(DatasetError, match="nothing to segment"):
        of_volumes("msd:Task09_Spleen", data)
    about = folder / "dataset.json"
    about.write_text(about.read_text().replace('"2"', '"5"'))
    dataset = of_volumes("msd:Task09_Spleen", data)
    assert dataset.classes == ("background", "liver", "tumour")
    assert len(dataset) == 10


def test_no_folder_and_no_dataset_json_are_said(data: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="folder of this dataset is not there"):
        load_dataset("msd:Task09_Spleen", data)
    folder = make_task(data, cases=2)
    (folder / "dataset.json").unlink()
    with pytest.raises(DatasetNotFoundError, match="holds no images"):
        load_dataset("msd:Task09_Spleen", data)
    (folder / "dataset.json").write_text('{"labels": ["spleen"]}')
    with pytest.raises(DatasetError, match="does not name the classes"):
        load_dataset("msd:Task09_Spleen", data)


def test_a_spacing_makes_another_dataset_and_resamples_volume_and_mask(data: Path) -> None:
    make_task(data)
    plain = of_volumes("msd:Task09_Spleen", data)
    other = of_volumes("msd:Task09_Spleen", data, spacing=(1.25, 1.44, 0.8))
    assert other.digest != plain.digest
    assert (other.uids == plain.uids).all()
    volume = other.decode(0)
    assert volume.spacing == (1.25, 1.44, 0.8)
    assert other.samples[0].size == volume.shape == other.decode_mask(0).shape
    assert volume.shape == (12, 5, 10)
    assert (other.mask_at_original_spacing(0) == plain.decode_mask(0)).all()
    assert DatasetSpec.from_dict(json.loads(json.dumps(other.spec.to_dict()))) == other.spec


def test_images_have_no_spacing_and_their_specs_do_not_mention_one(few: Path) -> None:
    assert "spacing" not in DatasetSpec("phantom").to_dict()
    with pytest.raises(UsageError, match="for volumes"):
        load_dataset(DatasetSpec(f"folder:{few}", spacing=(1.0, 1.0, 1.0)))
    with pytest.raises(UsageError, match="three positive numbers"):
        DatasetSpec("phantom", spacing=(1.0, 0.0, 1.0))


def test_a_mask_that_changes_changes_the_digest_and_a_volume_that_changes_is_noticed(
    data: Path,
) -> None:
    folder = make_task(data)
    before = of_volumes("msd:Task09_Spleen", data)
    path = before.samples[0].path
    save(folder / "labelsTr" / path.name, np.ones((10, 9, 6), np.uint8))
    assert of_volumes("msd:Task09_Spleen", data).digest != before.digest
    with pytest.raises(DatasetError, match="has changed"):
        before.decode_mask(0)
    save(path, np.ones((10, 9, 6), np.float32))
    with pytest.raises(DatasetError, match="has changed"):
        before.decode(0)


def test_equal_voxels_in_other_files_are_a_leak_and_stay_together_where_splits_are_drawn(
    data: Path,
) -> None:
    folder = make_task(data)
    for part in ("imagesTr", "labelsTr"):
        image = nibabel.load(folder / part / "case_000.nii.gz")
        array = np.asarray(image.dataobj)
        save(folder / part / "case_000_again.nii", array)
    dataset = of_volumes("msd:Task09_Spleen", data)
    assert len(dataset) == 11
    (pair,) = dataset.leaks.pairs
    assert pair.kind == "exact"
    assert not pair.crosses_splits


def test_btcv_has_thirteen_organs_or_the_gallbladder_alone(data: Path) -> None:
    for number in range(1, 9):
        draw_case(
            data / "btcv" / "RawData" / "Training",
            f"img/img{number:04}.nii.gz",
            f"label/label{number:04}.nii.gz",
            number,
            13,
        )
    every, one = of_volumes("btcv", data), of_volumes("btcv-gallbladder", data)
    assert len(every.classes) == 14
    assert one.classes == ("background", "gallbladder")
    assert (one.uids == every.uids).all()
    gallbladder = every.classes.index("gallbladder")
    assert ((every.decode_mask(2) == gallbladder) == (one.decode_mask(2) == 1)).all()


def test_acdc_keeps_its_split_and_a_patients_frames_together(data: Path) -> None:
    for number, place in [(n, "training") for n in range(1, 9)] + [(101, "testing")]:
        patient = data / "ACDC" / "database" / place / f"patient{number:03}"
        for frame in ("01", "12"):
            stem = f"patient{number:03}_frame{frame}"
            draw_case(patient, f"{stem}.nii.gz", f"{stem}_gt.nii.gz", number * 100 + int(frame), 3)
        save(patient / f"patient{number:03}_4d.nii.gz", np.zeros((4, 4, 4, 3), np.float32))
        (patient / "Info.cfg").write_text("ED: 1\nES: 12\nGroup: HCM\n")
    dataset = of_volumes("acdc", data)
    assert len(dataset) == 18
    assert {s.split for s in dataset.samples if "testing" in s.name} == {"test"}
    splits_of = {(sample.group, sample.split) for sample in dataset.samples}
    assert len(splits_of) == 9
    assert {sample.label for sample in dataset.samples} == {2}


@pytest.mark.parametrize("size", ["", "_64"])
def test_medmnist_volumes_have_their_official_splits(data: Path, size: str) -> None:
    random = np.random.default_rng(0)
    side = 64 if size else 28
    arrays = {}
    for split, count in (("train", 6), ("val", 4), ("test", 4)):
        arrays[f"{split}_images"] = random.integers(0, 256, (count, *[side] * 3), np.uint8)
        arrays[f"{split}_labels"] = np.arange(count)[:, None] % 2
    (data / "medmnist").mkdir(parents=True)
    np.savez(data / "medmnist" / f"nodulemnist3d{size}.npz", **arrays)
    dataset = of_volumes(f"nodulemnist3d{size}", data)
    assert Counter(dataset.splits.tolist()) == {"train": 6, "val": 4, "test": 4}
    assert (dataset.task, dataset.channels) == ("multiclass", 1)
    number = int(dataset.samples[0].path.name)
    volume = dataset.decode(0)
    assert (volume.values[0] == arrays["train_images"][number]).all()
    np.testing.assert_allclose(volume.unit(), volume.values / 255, atol=1e-6)


def test_a_file_of_images_is_no_set_of_volumes(data: Path) -> None:
    (data / "medmnist").mkdir(parents=True)
    arrays = {}
    for split in ("train", "val", "test"):
        arrays[f"{split}_images"] = np.zeros((4, 28, 28), np.uint8)
        arrays[f"{split}_labels"] = np.zeros((4, 1), np.int64)
    np.savez(data / "medmnist" / "vesselmnist3d.npz", **arrays)
    with pytest.raises(DatasetError, match="holds no volumes"):
        load_dataset("vesselmnist3d", data)


def test_all_sets_of_volumes_are_listed() -> None:
    cards = {card.name: card for card in list_datasets() if card.dimensions == 3}
    assert set(cards) == {
        *("phantom-3d", "phantom-3d-seg", "msd:TASK", "btcv", "btcv-gallbladder", "acdc"),
        *("organmnist3d", "nodulemnist3d", "adrenalmnist3d"),
        *("fracturemnist3d", "vesselmnist3d", "synapsemnist3d"),
    }
    assert cards["btcv"].task == "segmentation"


def test_check_tells_of_volumes_what_it_tells_of_images(data: Path) -> None:
    folder = make_task(data)
    (folder / "labelsTr" / "case_000.nii.gz").unlink()
    command = ["check", "msd:Task09_Spleen", "--data-dir", str(data)]
    said = json.loads(CliRunner().invoke(cli, [*command, "--json"]).stdout)
    assert said["samples"] == 9
    assert "no mask in labelsTr" in said["problems"][0]
    assert said["volumes"][0] == "6 × 9 × 10 voxels along z, y, x; 1 channel"
    assert "9 volumes, 3 classes" in CliRunner().invoke(cli, command).stdout


def test_phantom_volumes_are_drawn_the_same_every_time_and_differ() -> None:
    lesions, parts = (of_volumes(name, Path()) for name in ("phantom-3d", "phantom-3d-seg"))
    assert len(lesions) == 90
    lesions.decode(5).values[:] = 0  # theirs who asked for it
    parts.decode_mask(5)[:] = 0
    assert lesions.decode(5).values.any()
    assert parts.decode_mask(5).any()
    assert (lesions.decode(5).values == of_volumes("phantom-3d", Path()).decode(5).values).all()
    assert set(lesions.uids) == set(parts.uids)
    assert lesions.leaks.pairs == ()
    for sample in parts.samples:
        assert min(sample.mask_counts) >= 20


@pytest.mark.real_data
def test_the_hippocampus_loads_from_the_decathlon(real_data: Path) -> None:
    dataset = of_volumes("msd:Task04_Hippocampus", real_data)
    assert dataset.classes == ("background", "Anterior", "Posterior")
    assert Counter(dataset.splits.tolist()) == {"train": 177, "val": 31, "test": 52}
    assert dataset.skipped == ()
    assert len({sample.size for sample in dataset.samples}) == 236
    for index in range(0, len(dataset), 40):
        unit = dataset.decode(index).unit()
        assert 0.1 < unit.mean() < 0.9
        assert dataset.decode_mask(index).shape == unit.shape[1:]
