from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdcache.data import (
    DatasetSpec,
    Jitter,
    ViewSpec,
    VolumeDataset,
    VolumeInputs,
    WorkingVolumes,
    cut_volume,
    cut_volume_mask,
    inputs_for,
    load_dataset,
    require_volumes,
    view_parameters,
)
from rdcache.errors import CorruptInputsError, DatasetError, FileWriteError, UsageError


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> VolumeDataset:
    return require_volumes(load_dataset(DatasetSpec("phantom-3d-seg")))


def views_of(dataset: VolumeDataset, count: int = 3, **options: object) -> np.ndarray:
    spec = ViewSpec("random", count, **options)  # type: ignore[arg-type]
    return view_parameters(spec, dataset.uids, [sample.size for sample in dataset.samples])


def test_a_batch_is_the_teachers_patch_within_its_range_and_normalised(
    parts: VolumeDataset,
) -> None:
    parameters = views_of(parts, patch=(16, 16, 16), stride=8)
    inputs = VolumeInputs(parts, parameters, 16, [0.4], [0.2])
    batch = inputs.batch([3, 0, 3], [1, 0, 2])
    assert batch.shape == (3, 1, 16, 16, 16)
    for row, (sample, view) in enumerate([(3, 1), (0, 0), (3, 2)]):
        volume = parts.decode(sample)
        box = parameters[view, sample]
        cut = cut_volume(volume.values, box, (16, 16, 16), volume.low).astype(np.float64)
        unit = np.clip((cut - volume.low) / (volume.high - volume.low), 0, 1)
        np.testing.assert_allclose(batch[row].numpy(), (unit - 0.4) / 0.2, atol=1e-5)


def test_masks_are_cut_as_their_batch_and_kept_like_it(parts: VolumeDataset) -> None:
    parameters = views_of(parts, patch=(16, 24, 24), symmetry="d4")
    inputs = VolumeInputs(parts, parameters, (16, 24, 24), [0.5], [0.5])
    for _ in range(2):
        masks = inputs.masks([5, 1], [2, 1])
        assert masks.dtype == torch.int64
        for row, (sample, view) in enumerate([(5, 2), (1, 1)]):
            mask = parts.decode_mask(sample)
            expected = cut_volume_mask(mask, parameters[view, sample], (16, 24, 24))
            assert (masks[row].numpy() == expected).all()


def test_what_memory_may_be_used_changes_no_batch(parts: VolumeDataset) -> None:
    parameters = views_of(parts)
    batches = []
    for limit in (0, 300_000, None):
        inputs = VolumeInputs(parts, parameters, 12, [0.5], [0.5], ram_limit=limit)
        pair = [inputs.batch([7, 2], [1, 0]) for _ in range(2)]
        assert torch.equal(*pair)
        batches.append(pair[0])
    assert torch.equal(batches[0], batches[1])
    assert torch.equal(batches[0], batches[2])


def test_jitter_scales_brightness_and_contrast_within_the_range(parts: VolumeDataset) -> None:
    parameters = views_of(parts, patch=(8, 8, 8))
    inputs = VolumeInputs(parts, parameters, 8, [0.0], [1.0], Jitter(0.3, 0.4))
    plain = inputs.batch([0, 1], [1, 1]).double()
    jittered = inputs.batch([0, 1], [1, 1], np.random.default_rng(5)).double()
    draws = np.random.default_rng(5).uniform(-1, 1, (2, 2)).astype(np.float32)
    for row in range(2):
        bright, contrast = 1 + 0.3 * draws[0, row], 1 + 0.4 * draws[1, row]
        x = plain[row]
        expected = (bright * contrast * x + bright * (1 - contrast) * x.mean()).clamp(0, 1)
        torch.testing.assert_close(jittered[row], expected, atol=1e-5, rtol=0)


def test_another_students_normalisation_shares_the_cuts(parts: VolumeDataset) -> None:
    inputs = VolumeInputs(parts, views_of(parts), 8, [0.0], [1.0])
    other = inputs.for_student([0.5], [0.25], None)
    torch.testing.assert_close(other.batch([4], 1), (inputs.batch([4], 1) - 0.5) / 0.25)
    assert other.volumes is inputs.volumes


def test_a_normalisation_of_other_channels_is_refused(parts: VolumeDataset) -> None:
    with pytest.raises(UsageError, match="1 channels"):
        VolumeInputs(parts, views_of(parts), 8, [0.5] * 3, [0.5] * 3)


def test_classification_has_no_masks() -> None:
    lesions = require_volumes(load_dataset(DatasetSpec("phantom-3d")))
    make = inputs_for(torch.device("cpu"), dimensions=3)
    inputs = make(lesions, views_of(lesions), 8, [0.5], [0.5], None, None, interpolation="bicubic")
    assert isinstance(inputs, VolumeInputs)
    with pytest.raises(DatasetError, match="has no masks"):
        inputs.masks([0], 0)


def test_volumes_kept_on_disk_are_the_decoded_ones(parts: VolumeDataset, tmp_path: Path) -> None:
    WorkingVolumes(parts, cache=tmp_path)[2]
    again = WorkingVolumes(parts, cache=tmp_path)
    kept, volume = again[2], parts.decode(2)
    assert (kept.values == volume.values).all()
    assert (kept.affine == volume.affine).all()
    assert (kept.low == volume.low).all()
    assert (kept.high == volume.high).all()
    assert kept.spacing == volume.spacing
    assert (again.mask(2) == parts.decode_mask(2)).all()
    assert "kept on disk" in str(again)


def test_a_damaged_volume_on_disk_is_noticed(parts: VolumeDataset, tmp_path: Path) -> None:
    WorkingVolumes(parts, cache=tmp_path)[2]
    file = next(tmp_path.rglob("2.values.npy"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    for damaged in (bytes(data), bytes(data[:-8]), b""):
        file.write_bytes(damaged)
        with pytest.raises(CorruptInputsError, match="damaged"):
            WorkingVolumes(parts, cache=tmp_path)[2]
    file.unlink()
    with pytest.raises(CorruptInputsError, match="damaged"):
        WorkingVolumes(parts, cache=tmp_path)[2]


def test_two_threads_that_ask_for_a_volume_keep_it_once(
    parts: VolumeDataset, tmp_path: Path
) -> None:
    together = threading.Barrier(2)
    decoded: list[Path] = []

    def read(path: Path) -> Any:
        decoded.append(path)
        time.sleep(0.05)
        return parts.read(path)

    volumes = WorkingVolumes(replace(parts, read=read), cache=tmp_path)

    def ask(_: int) -> np.ndarray:
        together.wait()
        return volumes[3].values

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask, range(2))
    assert (first == second).all()
    assert len(decoded) == 1


def test_a_folder_that_cannot_be_made_is_said(parts: VolumeDataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileWriteError, match="cannot be kept"):
        WorkingVolumes(parts, cache=tmp_path / "file")


def test_images_are_no_volumes(few: Path) -> None:
    with pytest.raises(UsageError, match="holds images"):
        require_volumes(load_dataset(f"folder:{few}"))
