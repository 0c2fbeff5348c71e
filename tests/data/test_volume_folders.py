"""Users' own volumes, in the layouts of their own images."""

from __future__ import annotations

import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rdcache.data import load_dataset, require_volumes
from rdcache.data.volume_folders import list_table_of_either
from rdcache.errors import DatasetError


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])), path)


def some_values(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((6, 5, 4)).astype(np.float32)


def test_class_folders_of_volumes_are_a_classification(tmp_path: Path) -> None:
    for number in range(16):
        save(tmp_path / ("ill" if number % 2 else "well") / f"{number}.nii.gz", some_values(number))
    dataset = require_volumes(load_dataset(f"folder:{tmp_path}"))
    assert dataset.classes == ("ill", "well")
    assert (dataset.task, len(dataset)) == ("multiclass", 16)
    assert dataset.decode(0).spacing == (3.0, 1.0, 1.0)


def test_volumes_beside_masks_are_a_segmentation_with_the_users_splits(tmp_path: Path) -> None:
    for split, count in (("train", 6), ("test", 3)):
        for number in range(count):
            save(tmp_path / split / "images" / f"{number}.nii.gz", some_values(number + 10 * count))
            mask = np.where(some_values(number) > 0, 255, 0).astype(np.uint8)
            save(tmp_path / split / "masks" / f"{number}_mask.nii.gz", mask)
    save(tmp_path / "test" / "images" / "alone.nii.gz", some_values(77))
    dataset = require_volumes(load_dataset(f"folder:{tmp_path}"))
    assert dataset.classes == ("background", "foreground")
    assert dataset.counts()["test"] == {"background": 3, "foreground": 3}
    assert set(np.unique(dataset.decode_mask(0))) == {0, 1}
    (skipped,) = dataset.skipped
    assert skipped.path == "test/images/alone.nii.gz"


def test_a_table_may_list_volumes_but_not_both_kinds(tmp_path: Path) -> None:
    rows = ["path,label,group"]
    for number in range(12):
        np.save(tmp_path / f"{number}.npy", some_values(number))
        rows.append(f"{number}.npy,{number % 3},patient {number // 2}")
    table = tmp_path / "volumes.csv"
    table.write_text("\n".join(rows))
    dataset = require_volumes(load_dataset(f"table:{table}"))
    assert dataset.classes == ("0", "1", "2")
    assert len({(sample.group, sample.split) for sample in dataset.samples}) == 6
    table.write_text("\n".join([*rows, "picture.png,1,nobody"]))
    with pytest.raises(DatasetError, match="both images and volumes"):
        load_dataset(f"table:{table}")


def test_a_folder_of_a_series_may_be_called_by_its_number(tmp_path: Path) -> None:
    lines = ["path,label"]
    for number in range(4):
        (tmp_path / f"1.2.840.{number}").mkdir()
        lines.append(f"1.2.840.{number},{number % 2}")
    table = tmp_path / "series.csv"
    table.write_text("\n".join(lines))
    assert list_table_of_either(table).dimensions == 3


def test_a_package_that_is_missing_is_said_and_not_held_against_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        save(tmp_path / "ab"[number % 2] / f"{number}.nii.gz", some_values(number))
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(DatasetError, match="needs nibabel"):
        load_dataset(f"folder:{tmp_path}")
