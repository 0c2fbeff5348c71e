from __future__ import annotations

import gzip
import tracemalloc
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from nibabel.orientations import io_orientation

from rdcache.data.decoding import UnreadableImageError
from rdcache.data.volume_files import grid_of, read_class_numbers, read_volume, volume_stem
from rdcache.data.volumes import Grid, back_on_file_axes, oriented


def rotation(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = (each for each in range(3) if each != axis)
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def awkward_affine(
    order: tuple[int, ...] = (1, 2, 0), signs: tuple[int, ...] = (-1, 1, -1)
) -> np.ndarray:
    """Rotated, anisotropic, with axes permuted and reversed."""
    affine = np.eye(4)
    axes = np.eye(3)[:, list(order)] * signs
    affine[:3, :3] = rotation(20, 2) @ rotation(-11, 0) @ axes @ np.diag([0.8, 1.5, 3.0])
    affine[:3, 3] = (12, -40, 7.5)
    return affine


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> Path:
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def some_values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def as_they_are(numbers: np.ndarray) -> np.ndarray:
    return numbers


ORIENTATIONS = list(product(permutations(range(3)), product((1, -1), repeat=3)))


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::5])
def test_a_volume_is_turned_to_right_front_and_head_as_nibabel_turns_it(
    tmp_path: Path, order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    array, affine = some_values(5, 6, 7), awkward_affine(order, signs)
    volume = read_volume(save_nifti(tmp_path / "v.nii", array, affine))
    reference = nibabel.as_closest_canonical(nibabel.Nifti1Image(array, affine))
    assert (volume.values[0] == np.asarray(reference.dataobj).transpose(2, 1, 0)).all()
    np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-5)
    np.testing.assert_allclose(volume.spacing, reference.header.get_zooms()[::-1], rtol=1e-6)


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7])
def test_axes_are_found_as_nibabel_finds_them_and_can_be_undone(
    order: tuple[int, ...], signs: tuple[int, ...]
) -> None:
    array, grid = some_values(3, 4, 5), Grid((3, 4, 5), awkward_affine(order, signs))
    axes, backwards = grid.order()
    expected = io_orientation(grid.affine)  # of each axis of the file: world axis and direction
    for world, (axis, reverse) in enumerate(zip(axes[::-1], backwards[::-1], strict=True)):
        assert expected[axis].tolist() == [world, -1 if reverse else 1]
    assert (back_on_file_axes(oriented(array, grid)[0], grid) == array).all()


def test_slope_and_intercept_of_a_nifti_are_applied(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    image.header.set_slope_inter(2.0, -1000.0)
    nibabel.save(image, tmp_path / "ct.nii.gz")
    values = np.asarray(nibabel.load(tmp_path / "ct.nii.gz").dataobj)
    volume = read_volume(tmp_path / "ct.nii.gz", window=(-160.0, 240.0))
    np.testing.assert_allclose(volume.values[0], values.transpose(2, 1, 0))
    assert (volume.low.item(), volume.high.item()) == (-160.0, 240.0)


def test_a_fourth_axis_is_channels_each_with_a_range_of_its_own(tmp_path: Path) -> None:
    array = some_values(6, 7, 8, 2) * np.float32([1.0, 1e6])
    volume = read_volume(save_nifti(tmp_path / "mri.nii.gz", array))
    assert volume.values.shape == (2, 8, 7, 6)
    low, high = np.percentile(array.reshape(-1, 2).astype(np.float64), (0.5, 99.5), axis=0)
    np.testing.assert_allclose(volume.low.ravel(), low, rtol=1e-5)
    np.testing.assert_allclose(volume.high.ravel(), high, rtol=1e-5)
    unit = volume.unit()
    assert unit.min() == 0
    assert unit.max() == 1


def test_nearly_constant_and_constant_volumes_have_a_range(tmp_path: Path) -> None:
    array = np.zeros((10, 10, 10), np.float32)
    array[0, 0, 0] = 40.0
    assert read_volume(save_nifti(tmp_path / "a.nii", array)).high.item() == 40.0
    constant = np.full((4, 4, 4), 1e9, np.float32)
    assert np.isfinite(read_volume(save_nifti(tmp_path / "b.nii", constant)).unit()).all()


def save_series(
    folder: Path, array: np.ndarray, skip: tuple[int, ...] = (), tilt: float = 0.0
) -> SimpleITK.Image:
    """A CT series with anisotropic voxels of a patient who lies askew; (D, H, W) int16.

    Args:
        tilt: of the gantry: millimetres by which each slice lies behind the one before.
    """
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((0.7, 0.9, 2.5))
    image.SetOrigin((-30.0, 14.0, 100.0))
    image.SetDirection((rotation(15, 2) @ rotation(-8, 0)).ravel().tolist())
    folder.mkdir(exist_ok=True)
    series = pydicom.uid.generate_uid()
    for number in set(range(len(array))) - set(skip):
        data = pydicom.Dataset()
        data.SOPClassUID = pydicom.uid.CTImageStorage
        data.SOPInstanceUID = pydicom.uid.generate_uid()
        data.StudyInstanceUID = data.FrameOfReferenceUID = "1.2.3"
        data.SeriesInstanceUID, data.Modality, data.InstanceNumber = series, "CT", number + 1
        direction = np.array(image.GetDirection()).reshape(3, 3)
        data.ImageOrientationPatient = [*direction[:, 0].tolist(), *direction[:, 1].tolist()]
        place = np.array(image.TransformIndexToPhysicalPoint((0, 0, number)))
        place += tilt * number * direction[:, 1]
        data.ImagePositionPatient = [round(each, 9) for each in place]
        data.PixelSpacing = [0.9, 0.7]  # between rows, then between columns
        data.Rows, data.Columns = array.shape[1:]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        data.PixelData = array[number].tobytes()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        # Names in another order than the slices'.
        name = f"{(number * 7) % 101:03}-{series[-6:]}.dcm"
        data.save_as(folder / name, enforce_file_format=True)
    return image


def test_a_dicom_series_is_the_same_volume_as_its_nifti(tmp_path: Path) -> None:
    array = (some_values(6, 5, 4) * 300).astype(np.int16)
    image = save_series(tmp_path / "series", array)
    SimpleITK.WriteImage(
        SimpleITK.Cast(image, SimpleITK.sitkFloat32) - 1024.0, tmp_path / "same.nii.gz"
    )
    series, nifti = read_volume(tmp_path / "series"), read_volume(tmp_path / "same.nii.gz")
    assert (series.values == nifti.values).all()
    np.testing.assert_allclose(series.affine, nifti.affine, atol=1e-4)


def test_slices_of_a_tilted_gantry_lie_where_they_say(tmp_path: Path) -> None:
    image = save_series(tmp_path / "series", some_values(6, 5, 4).astype(np.int16), tilt=1.2)
    direction = np.array(image.GetDirection()).reshape(3, 3)
    grid = grid_of(tmp_path / "series")
    to_the_next = (2.5 * direction[:, 2] + 1.2 * direction[:, 1]) * (-1, -1, 1)
    np.testing.assert_allclose(grid.affine[:3, 2], to_the_next, atol=1e-6)
    np.testing.assert_allclose(grid.affine[:3, 3], (30.0, -14.0, 100.0), atol=1e-6)


def test_two_series_in_a_folder_are_not_chosen_from_but_a_scout_is_left_out(tmp_path: Path) -> None:
    array = (some_values(4, 5, 4) * 300).astype(np.int16)
    save_series(tmp_path / "series", array)
    save_series(tmp_path / "series", array[:1])
    assert read_volume(tmp_path / "series").shape == (4, 5, 4)
    save_series(tmp_path / "series", array)
    with pytest.raises(UnreadableImageError, match="2 series in one folder"):
        read_volume(tmp_path / "series")


def test_a_series_with_a_missing_slice_is_refused(tmp_path: Path) -> None:
    save_series(tmp_path / "series", (some_values(6, 5, 4) * 300).astype(np.int16), skip=(3,))
    with pytest.raises(UnreadableImageError, match="unevenly spaced"):
        read_volume(tmp_path / "series")


def test_numpy_files_are_z_y_x_with_a_spacing_where_they_say_so(tmp_path: Path) -> None:
    array = some_values(3, 4, 5)
    np.save(tmp_path / "v.npy", array)
    np.savez(tmp_path / "v.npz", image=array[None], spacing=[3.0, 2.0, 1.0])
    plain, spaced = read_volume(tmp_path / "v.npy"), read_volume(tmp_path / "v.npz")
    assert (plain.values[0] == array).all()
    assert (spaced.values[0] == array).all()
    assert plain.spacing == (1.0, 1.0, 1.0)
    assert spaced.spacing == (3.0, 2.0, 1.0)


def test_a_damaged_archive_says_so(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "v.nii.gz", some_values(20, 20, 20))
    data = bytearray(path.read_bytes())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UnreadableImageError, match="cut short"):
        read_volume(path)
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UnreadableImageError, match="damaged"):
        read_volume(path)
    path.write_bytes(gzip.compress(b"no header at all" * 100))
    with pytest.raises(UnreadableImageError, match="no NIfTI"):
        read_volume(path)
    path.write_bytes(b"")
    with pytest.raises(UnreadableImageError, match="empty"):
        read_volume(path)


def test_a_nifti_that_holds_fewer_voxels_than_it_promises_says_so(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "v.nii", some_values(9, 9, 9))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UnreadableImageError, match="promises more"):
        read_volume(path)


def test_voxels_that_are_no_numbers_are_counted(tmp_path: Path) -> None:
    array = some_values(4, 4, 4)
    array[1, 2, 3] = np.nan
    array[0, 0, 0] = np.inf
    with pytest.raises(UnreadableImageError, match="2 of its 64 voxels are NaN or Inf"):
        read_volume(save_nifti(tmp_path / "v.nii", array))


def test_a_volume_without_a_place_is_refused(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(some_values(4, 4, 4), np.eye(4))
    flat = np.diag([1.0, 1.0, 0.0, 1.0])
    image.header.set_sform(flat, code=1)
    image.header["vox_offset"] = 352
    path = tmp_path / "v.nii"
    path.write_bytes(bytes(image.header.binaryblock) + bytes(4) + image.dataobj.tobytes())
    with pytest.raises(UnreadableImageError, match="singular"):
        read_volume(path)


def test_a_picture_is_no_volume(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="no volume"):
        read_volume(save_nifti(tmp_path / "v.nii", some_values(4, 4)))


def test_a_mask_is_turned_as_its_image_is(tmp_path: Path) -> None:
    affine = awkward_affine()
    numbers = np.random.default_rng(1).integers(0, 3, (5, 6, 7)).astype(np.uint8)
    image = save_nifti(tmp_path / "i.nii.gz", numbers.astype(np.float32), affine)
    mask = save_nifti(tmp_path / "m.nii.gz", numbers, affine)
    found = read_class_numbers(mask, image, as_they_are)
    assert found.dtype == np.uint8
    assert (found == read_volume(image).values[0]).all()


@pytest.mark.parametrize(
    ("array", "shift", "match"),
    [
        (np.zeros((5, 6, 8), np.uint8), 0.0, "5×6×8 voxels, and its image 5×6×7"),
        (np.zeros((5, 6, 7), np.uint8), 2.0, "2 mm beside its image"),
        (np.full((5, 6, 7), 0.5, np.float32), 0.0, "not whole"),
        (np.zeros((5, 6, 7, 2), np.uint8), 0.0, "2 channels"),
    ],
)
def test_a_mask_that_does_not_fit_says_why(
    tmp_path: Path, array: np.ndarray, shift: float, match: str
) -> None:
    affine = awkward_affine()
    image = save_nifti(tmp_path / "i.nii.gz", some_values(5, 6, 7), affine)
    moved = affine.copy()
    moved[0, 3] += shift
    mask = save_nifti(tmp_path / "m.nii.gz", array, moved)
    with pytest.raises(UnreadableImageError, match=match):
        read_class_numbers(mask, image, as_they_are)


def test_a_mask_whose_axes_are_exchanged_lies_elsewhere(tmp_path: Path) -> None:
    affine = awkward_affine()
    affine[:3, 1] *= np.linalg.norm(affine[:3, 0]) / np.linalg.norm(affine[:3, 1])
    image = save_nifti(tmp_path / "i.nii.gz", some_values(6, 6, 7), affine)
    mask = save_nifti(tmp_path / "m.nii.gz", np.zeros((6, 6, 7), np.uint8), affine[:, [1, 0, 2, 3]])
    with pytest.raises(UnreadableImageError, match="beside its image"):
        read_class_numbers(mask, image, as_they_are)


def test_no_more_memory_is_taken_than_an_archive_unpacks_to(tmp_path: Path) -> None:
    path = save_nifti(tmp_path / "v.nii.gz", some_values(9, 9, 9))
    tracemalloc.start()
    read_volume(path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2**28


def test_stems_are_without_both_suffixes() -> None:
    assert volume_stem(Path("a/case.01.nii.gz")) == "case.01"
    assert volume_stem(Path("case_2.npz")) == "case_2"


@pytest.mark.real_data
def test_hippocampus_volumes_of_all_ranges_are_read(real_data: Path) -> None:
    folder = real_data / "msd" / "Task04_Hippocampus"
    for path in sorted((folder / "imagesTr").glob("*.nii.gz"))[::20]:
        reference = nibabel.as_closest_canonical(nibabel.load(path))
        volume = read_volume(path)
        expected = np.asarray(reference.dataobj, np.float32).transpose(2, 1, 0)
        assert (volume.values[0] == expected).all()
        assert 0.05 < volume.unit().mean() < 0.95
        mask = read_class_numbers(folder / "labelsTr" / path.name, path, as_they_are)
        assert mask.shape == volume.shape
        assert set(np.unique(mask)) == {0, 1, 2}
