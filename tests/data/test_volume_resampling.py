"""Resampling there and back, against SimpleITK and SciPy on the files themselves."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
from hypothesis import given
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from scipy.ndimage import gaussian_filter, map_coordinates

from rdcache.data import Volume, labels_at_original_spacing, write_on_original_grid
from rdcache.data.volume_files import read_class_numbers, read_volume
from rdcache.data.volume_resampling import resampled, resampled_mask
from rdcache.errors import UsageError

SHAPE = (21, 17, 9)


def turned_affine() -> np.ndarray:
    """A rotation about two axes, spacing 0.9 × 1.4 × 3 mm, axes permuted, two of them reversed."""
    a, b = np.radians(23), np.radians(-14)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    axes = np.array([[0, -1, 0], [0, 0, 1], [-1, 0, 0]])
    affine = np.eye(4)
    affine[:3, :3] = about_z @ about_x @ axes @ np.diag([0.9, 1.4, 3.0])
    affine[:3, 3] = (-31.0, 22.5, 140.0)
    return affine


@pytest.fixture
def file(tmp_path: Path) -> Path:
    random = np.random.default_rng(3)
    smooth = gaussian_filter(random.standard_normal(SHAPE), 2.0).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(smooth, turned_affine()), tmp_path / "case.nii.gz")
    return tmp_path / "case.nii.gz"


def world_of(volume: Volume) -> np.ndarray:
    """Millimetres of each voxel: (D, H, W, 3)."""
    z, y, x = np.meshgrid(*map(np.arange, volume.shape), indexing="ij")
    return apply_affine(volume.affine, np.stack([x, y, z], axis=-1))


def test_a_resampled_volume_is_what_simpleitk_finds_at_the_same_places(file: Path) -> None:
    volume = resampled(read_volume(file), (1.5, 1.2, 1.1))
    image = SimpleITK.ReadImage(str(file), SimpleITK.sitkFloat64)
    found = np.full(volume.shape, np.nan)
    for place, millimetres in zip(
        np.ndindex(volume.shape), world_of(volume).reshape(-1, 3), strict=True
    ):
        left_back_head = (millimetres * [-1, -1, 1]).tolist()
        index = image.TransformPhysicalPointToContinuousIndex(left_back_head)
        if all(0 <= i <= side - 1 for i, side in zip(index, SHAPE, strict=True)):
            found[place] = image.EvaluateAtPhysicalPoint(left_back_head, SimpleITK.sitkLinear)
    inside = np.isfinite(found)
    assert inside.mean() > 0.6
    np.testing.assert_allclose(volume.values[0][inside], found[inside], atol=1e-5)
    assert volume.spacing == (1.5, 1.2, 1.1)


def test_the_centre_stays_where_it_is(file: Path) -> None:
    volume = read_volume(file)
    other = resampled(volume, (2.0, 2.0, 0.7))
    for each in (volume, other):
        middle = world_of(each).reshape(-1, 3).mean(axis=0)
        np.testing.assert_allclose(middle, apply_affine(turned_affine(), (10, 8, 4)), atol=1e-4)


def test_a_prediction_lands_on_the_files_own_grid(file: Path, tmp_path: Path) -> None:
    """Scores at another spacing, written back, against an interpolation of them at the world
    coordinates of every voxel of the file.
    """
    volume = resampled(read_volume(file), (1.5, 1.2, 1.1))
    random = np.random.default_rng(8)
    scores = np.stack([gaussian_filter(random.standard_normal(volume.shape), 2) for _ in range(3)])
    write_on_original_grid(scores.astype(np.float32), volume, tmp_path / "out.nii.gz")

    written = nibabel.load(tmp_path / "out.nii.gz")
    np.testing.assert_allclose(written.affine, turned_affine(), atol=1e-5)
    assert written.shape == SHAPE
    i, j, k = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    world = apply_affine(turned_affine(), np.stack([i, j, k], axis=-1))
    places = apply_affine(np.linalg.inv(volume.affine), world)  # x, y, z
    coordinates = np.moveaxis(places[..., ::-1], -1, 0)
    expected = np.stack(
        [map_coordinates(each, coordinates, order=1, mode="nearest") for each in scores]
    )
    first, second = np.sort(expected, axis=0)[[-1, -2]]
    clear = first - second > 1e-4  # elsewhere rounding decides
    assert clear.mean() > 0.99
    assert (np.asarray(written.dataobj)[clear] == expected.argmax(axis=0)[clear]).all()


def test_a_mask_read_resampled_and_written_back_overlaps_itself(tmp_path: Path) -> None:
    labels = np.zeros((40, 30, 20), np.uint8)
    labels[8:30, 6:24, 4:15] = 1
    labels[14:24, 10:20, 6:12] = 2
    path = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(labels, turned_affine()), path)
    volume = read_volume(path)
    mask = read_class_numbers(path, path, np.asarray)
    wanted = (2.0, 1.0, 1.0)
    small = resampled_mask(mask, volume.spacing, wanted)
    scores = np.stack([small == number for number in range(3)]).astype(np.float32)
    found = write_on_original_grid(scores, resampled(volume, wanted), tmp_path / "back.nii.gz")
    for number in (1, 2):
        both = ((labels == number) & (found == number)).sum()
        assert 2 * both / ((labels == number).sum() + (found == number).sum()) > 0.93


def test_without_resampling_a_prediction_is_written_bit_for_bit(file: Path, tmp_path: Path) -> None:
    volume = read_volume(file)
    labels = np.random.default_rng(0).integers(0, 4, SHAPE).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(labels, turned_affine()), tmp_path / "m.nii")
    turned = read_class_numbers(tmp_path / "m.nii", file, np.asarray)
    scores = np.stack([turned == number for number in range(4)]).astype(np.float32)
    assert (labels_at_original_spacing(scores, volume) == turned).all()
    assert (write_on_original_grid(scores, volume, tmp_path / "out.nii") == labels).all()


@given(st.tuples(*[st.integers(1, 9)] * 3), st.tuples(*[st.floats(0.4, 4.0)] * 3))
def test_values_stay_between_those_that_they_come_from(
    shape: tuple[int, int, int], spacing: tuple[float, float, float]
) -> None:
    values = np.random.default_rng(1).uniform(-1, 1, (1, *shape)).astype(np.float32)
    volume = Volume(values, (1.0, 1.0, 1.0), np.eye(4), np.float32(-1), np.float32(1))
    other = resampled(volume, spacing)
    assert other.values.shape[0] == 1
    for side, new, step in zip(shape, other.shape, spacing, strict=True):
        assert new == max(1, round(side / step))
    assert other.values.min() >= values.min() - 1e-6
    assert other.values.max() <= values.max() + 1e-6


def test_a_spacing_that_makes_a_volume_enormous_is_refused(file: Path) -> None:
    with pytest.raises(UsageError, match="would have"):
        resampled(read_volume(file), (0.001, 0.001, 0.001))
