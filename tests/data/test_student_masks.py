"""The student's masks are cut from the originals with the views of its images."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from rdcache.data import (
    DeviceInputs,
    ImageDataset,
    StudentInputs,
    ViewSpec,
    cut_mask,
    load_dataset,
    view_parameters,
)
from rdcache.errors import DatasetError

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SIZE = 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    from pathlib import Path

    from PIL import Image

    root: Path = tmp_path_factory.mktemp("set")
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind).mkdir()
    for number in range(10):
        height, width = 40 + number, 60 - number
        noise = random.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(root / "images" / f"{number}.png")
        mask = random.integers(0, 2, (height, width), np.uint8)
        Image.fromarray(mask).save(root / "masks" / f"{number}.png")
    return load_dataset(f"folder:{root}")


@pytest.fixture
def parameters(dataset: ImageDataset) -> np.ndarray:
    spec = ViewSpec.parse("4", symmetry="d4")
    return view_parameters(spec, dataset.uids, [s.size for s in dataset.samples])


@pytest.mark.parametrize("ram_limit", [2**30, 8_000, 0], ids=["all kept", "some kept", "none kept"])
def test_masks_are_the_cuts_of_the_originals(
    ram_limit: int, dataset: ImageDataset, parameters: np.ndarray
) -> None:
    inputs = StudentInputs(
        dataset, parameters, SIZE, MEAN, STD, ram_limit=ram_limit, working_scale=1.0
    )
    samples, views = [3, 0, 3, 9], [1, 0, 3, 2]
    for _ in range(2):  # the second time from memory, if it may be kept
        masks = inputs.masks(samples, views)
        assert masks.dtype == torch.int64
        assert masks.shape == (4, SIZE, SIZE)
        for row, sample, view in zip(masks.numpy(), samples, views, strict=True):
            expected = cut_mask(dataset.decode_mask(sample), parameters[view, sample], SIZE)
            np.testing.assert_array_equal(row, expected)


def test_one_view_for_all_is_that_view_for_each(
    dataset: ImageDataset, parameters: np.ndarray
) -> None:
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD)
    assert torch.equal(inputs.masks(range(5), 2), inputs.masks(np.arange(5), [2] * 5))


def test_masks_are_decoded_once_where_memory_allows(
    dataset: ImageDataset, parameters: np.ndarray, decoded_masks: Counter[int]
) -> None:
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD, ram_limit=2**30)
    for view in (0, 1, 2, 1):
        inputs.masks(range(10), view)
    assert decoded_masks == Counter(range(10))


def test_a_student_of_the_same_size_shares_them(
    dataset: ImageDataset, parameters: np.ndarray, decoded_masks: Counter[int]
) -> None:
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD, ram_limit=2**30)
    first = inputs.masks(range(10), 0)
    assert torch.equal(inputs.for_student(STD, MEAN, None).masks(range(10), 0), first)
    assert decoded_masks == Counter(range(10))


def test_inputs_of_a_device_give_the_same_masks_there(
    dataset: ImageDataset, parameters: np.ndarray
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = StudentInputs(dataset, parameters, SIZE, MEAN, STD)
    there = DeviceInputs(
        dataset, parameters, SIZE, MEAN, STD, device=device, device_limit=2**30
    ).masks([4, 2], [1, 3])
    assert there.device.type == device.type
    assert torch.equal(there.cpu(), here.masks([4, 2], [1, 3]))


def test_a_classification_has_no_masks() -> None:
    phantom = load_dataset("phantom")
    spec = ViewSpec.parse("clean")
    parameters = view_parameters(spec, phantom.uids, [s.size for s in phantom.samples])
    with pytest.raises(DatasetError, match="has no masks"):
        StudentInputs(phantom, parameters, SIZE, MEAN, STD).masks([0], 0)
