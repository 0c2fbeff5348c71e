"""The student sees the teacher's view exactly, at its own size and normalisation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rdcache.data import (
    ImageDataset,
    Jitter,
    StudentInputs,
    ViewSpec,
    cut_view,
    load_dataset,
    view_parameters,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 16


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    """Ten different noise images of two classes, no two of one size."""
    random = np.random.default_rng(0)
    for number in range(10):
        folder = tmp_path / "set" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (40 + number, 60 - number, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return load_dataset(f"folder:{tmp_path / 'set'}")


@pytest.fixture
def parameters(dataset: ImageDataset) -> np.ndarray:
    spec = ViewSpec.parse("4", symmetry="d4")
    return view_parameters(spec, dataset.uids, [s.size for s in dataset.samples])


def normalised(pixels: np.ndarray) -> np.ndarray:
    """(H, W, 3) → (3, H, W), from the formula in float64."""
    values = (pixels.astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    return values.transpose(2, 0, 1)


@pytest.mark.parametrize(
    "ram_limit", [2**30, 30_000, 0], ids=["all kept", "some kept", "none kept"]
)
def test_a_batch_is_the_cut_views_normalised(
    ram_limit: int, dataset: ImageDataset, parameters: np.ndarray
) -> None:
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD, ram_limit=ram_limit)
    samples, views = [3, 0, 3, 9], [1, 0, 3, 2]
    for _ in range(2):  # the second time from memory, if it may be kept
        batch = inputs.batch(samples, views)
        assert batch.dtype == torch.float32
        assert batch.shape == (4, 3, SIZE, SIZE)
        assert batch.is_contiguous(memory_format=torch.channels_last)
        for row, sample, view in zip(batch, samples, views, strict=True):
            cut = cut_view(dataset.decode(sample), parameters[view, sample], SIZE)
            np.testing.assert_allclose(row.numpy(), normalised(cut), atol=1e-5)


def test_one_view_for_all_is_that_view_for_each(
    dataset: ImageDataset, parameters: np.ndarray
) -> None:
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD)
    assert torch.equal(inputs.batch(range(5), 2), inputs.batch(np.arange(5), [2] * 5))


def test_images_are_decoded_once_where_memory_allows(
    dataset: ImageDataset, parameters: np.ndarray, decoded: Counter[int]
) -> None:
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD)
    for view in (0, 1, 2, 1):
        for sample in range(10):
            inputs.batch([sample], view)
    assert set(decoded.values()) == {1}


def test_another_normalisation_decodes_and_cuts_nothing_again(
    dataset: ImageDataset, parameters: np.ndarray, decoded: Counter[int]
) -> None:
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD, Jitter())
    grey = inputs.for_student((0.5,) * 3, (0.5,) * 3, None)
    own = inputs.batch(range(10), 1)
    theirs = grey.batch(range(10), 1, np.random.default_rng(0))
    assert set(decoded.values()) == {1}
    for channel in range(3):
        white = own[:, channel] * STD[channel] + MEAN[channel]
        torch.testing.assert_close(theirs[:, channel], white * 2 - 1, atol=1e-5, rtol=0)
    assert torch.equal(inputs.batch(range(10), 1), own)


@pytest.mark.parametrize(("threads", "cores", "expected"), [(8, 2, 4), (1, 3, 2), (64, 64, 16)])
def test_no_more_cores_are_taken_than_are_given(
    dataset: ImageDataset,
    parameters: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
    threads: int,
    cores: int,
    expected: int,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr("rdcache.data.student_inputs.usable_cores", lambda: cores)
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD)
    assert inputs._threads._max_workers == expected


def test_without_memory_images_are_decoded_for_every_batch(
    dataset: ImageDataset, parameters: np.ndarray, decoded: Counter[int]
) -> None:
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD, ram_limit=0)
    for _ in range(3):
        inputs.batch([0, 1], 0)
    assert decoded == {0: 3, 1: 3}


def test_teacher_and_student_see_the_same_region(tmp_path: Path) -> None:
    """A white square is at the same place in both, at whatever size they look."""
    image = np.zeros((120, 160, 3), np.uint8)
    image[20:60, 30:90] = 255
    for label in "ab":
        (tmp_path / "set" / label).mkdir(parents=True)
        for number in range(2):
            image[-1, -1] = ord(label) + number  # four different files
            Image.fromarray(image).save(tmp_path / "set" / label / f"{number}.png")
    dataset = load_dataset(f"folder:{tmp_path / 'set'}")
    spec = ViewSpec.parse("12", symmetry="d4")
    parameters = view_parameters(spec, dataset.uids, [s.size for s in dataset.samples])
    student = StudentInputs(dataset, parameters, 48, (0.0,) * 3, (1.0,) * 3)
    for sample in range(4):
        for view in range(12):
            seen = student.batch([sample], view)[0].numpy()
            # The teacher looks at four times the student's size; its pixels are averaged.
            large = cut_view(dataset.decode(sample), parameters[view, sample], 192, "bicubic")
            coarse = large.reshape(48, 4, 48, 4, 3).mean(axis=(1, 3)).transpose(2, 0, 1) / 255
            assert np.abs(seen - coarse).mean() < 0.01
            assert seen.max() > 0.9
            assert seen.min() < 0.1


def test_jitter_is_the_generators_alone(dataset: ImageDataset, parameters: np.ndarray) -> None:
    plain = StudentInputs(dataset, parameters, SIZE, MEAN, STD).batch([0, 1, 2], 1)
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD, jitter=Jitter())
    assert torch.equal(inputs.batch([0, 1, 2], 1), plain)
    one, same, other = (
        inputs.batch([0, 1, 2], 1, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert not torch.equal(one, plain)
    assert torch.equal(inputs.batch([0, 1, 2], 1), plain)  # what is kept was not touched


def test_a_generator_without_jitter_changes_nothing(
    dataset: ImageDataset, parameters: np.ndarray
) -> None:
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD, jitter=None)
    assert torch.equal(inputs.batch([4], 0, np.random.default_rng(0)), inputs.batch([4], 0))


def test_jitter_scales_brightness_and_contrast_and_moves_no_pixel(
    dataset: ImageDataset, parameters: np.ndarray
) -> None:
    jitter = Jitter(brightness=0.2, contrast=0.3)
    inputs = StudentInputs(dataset, parameters, SIZE, (0.0,) * 3, (1 / 255,) * 3, jitter=jitter)
    samples = [0, 1, 2, 3]
    seen = inputs.batch(samples, 2, np.random.default_rng(7)).numpy()
    brightness, contrast = np.random.default_rng(7).uniform(-1, 1, (2, 4))
    for row, sample in enumerate(samples):
        cut = cut_view(dataset.decode(sample), parameters[2, sample], SIZE).astype(np.float64)
        bright = cut * (1 + 0.2 * brightness[row])
        expected = (bright - bright.mean()) * (1 + 0.3 * contrast[row]) + bright.mean()
        np.testing.assert_allclose(seen[row], expected.clip(0, 255).transpose(2, 0, 1), atol=1e-2)
