"""Views cut on a device are those that Pillow cuts, to one grey level."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from rdcache.data import (
    DeviceInputs,
    ImageDataset,
    Jitter,
    StudentInputs,
    ViewSpec,
    cut_view,
    load_dataset,
    view_parameters,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CPU = torch.device("cpu")
ENOUGH = 2**30
# Box, mirror, quarter turns: whole images, every symmetry, and boxes at every border.
BOXES = [(0.0, 0.0, 1.0, 1.0), (0.0, 0.3, 0.6, 1.0), (0.37, 0.0, 1.0, 0.71), (0.2, 0.1, 0.9, 0.8)]
VIEWS = [(*box, mirror, turns) for box in BOXES for mirror in (0, 1) for turns in range(4)]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Twenty noise images of very different sizes and shapes, of two classes."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("set")
    for number in range(20):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        pixels = random.integers(0, 256, (*random.integers(20, 300, 2), 3), np.uint8)
        Image.fromarray(pixels).save(folder / "ab"[number % 2] / f"{number}.png")
    return load_dataset(f"folder:{folder}")


@pytest.fixture(scope="module")
def training(dataset: ImageDataset) -> np.ndarray:
    return np.flatnonzero(dataset.splits == "train")


def on_cpu(
    dataset: ImageDataset, parameters: np.ndarray, size: int, **more: object
) -> DeviceInputs:
    return DeviceInputs(
        dataset, parameters, size, MEAN, STD, **{"device": CPU, "device_limit": ENOUGH, **more}
    )


def pillow(inputs: StudentInputs, samples: np.ndarray, views: np.ndarray) -> np.ndarray:
    pairs = zip(samples.tolist(), views.tolist(), strict=True)
    return np.stack(
        [cut_view(inputs.images[s], inputs.parameters[v, s], inputs.size) for s, v in pairs]
    )


@pytest.mark.parametrize("size", [16, 64, 100])
def test_a_device_cut_is_pillows_to_one_grey_level(
    dataset: ImageDataset, training: np.ndarray, size: int
) -> None:
    """Downwards, upwards, and one way each; every mirroring, turn and border."""
    parameters = np.repeat(np.array(VIEWS)[:, None], len(dataset), axis=1)
    inputs = on_cpu(dataset, parameters, size)
    random = np.random.default_rng(size)
    for first in range(0, len(VIEWS), 4):
        samples = random.choice(training, 8)
        views = np.tile(np.arange(first, first + 4), 2)
        cuts = inputs.device_cuts(samples, views)
        assert cuts.shape == (8, size, size, 3)
        error = np.abs(cuts.numpy() - pillow(inputs, samples, views))
        assert error.max() <= 1
        assert error.mean() < 0.2


@pytest.mark.parametrize("fit", ["squash", "center"])
def test_clean_and_random_views_of_reduced_images_are_those_of_the_cpu(
    dataset: ImageDataset, training: np.ndarray, fit: str
) -> None:
    spec = ViewSpec.parse("6", symmetry="d4", fit=fit)  # type: ignore[arg-type]
    parameters = view_parameters(spec, dataset.uids, [s.size for s in dataset.samples])
    inputs = on_cpu(dataset, parameters, 16, working_scale=2.0)
    assert ", 0 of them reduced" not in str(inputs)
    for view in range(6):
        views = np.full(len(training), view)
        error = np.abs(
            inputs.device_cuts(training, views).numpy() - pillow(inputs, training, views)
        )
        assert error.max() <= 1


def test_a_device_batch_is_jittered_and_normalised_as_on_the_cpu(
    dataset: ImageDataset, training: np.ndarray
) -> None:
    spec = ViewSpec.parse("3")
    parameters = view_parameters(spec, dataset.uids, [s.size for s in dataset.samples])
    device = on_cpu(dataset, parameters, 32, jitter=Jitter())
    cpu = StudentInputs(dataset, parameters, 32, MEAN, STD, Jitter())
    views = training % 3
    one, other = (each.batch(training, views, np.random.default_rng(4)) for each in (device, cpu))
    assert one.is_contiguous(memory_format=torch.channels_last)
    grey_levels = (one - other).abs() * torch.tensor(STD).view(3, 1, 1) * 255
    assert grey_levels.max() < 1.5  # one level, scaled by brightness and contrast
    assert torch.equal(device.batch(training, views, np.random.default_rng(4)), one)


def test_batches_of_large_images_are_cut_in_parts(
    dataset: ImageDataset, training: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = np.repeat(np.array(VIEWS)[:, None], len(dataset), axis=1)
    inputs = on_cpu(dataset, parameters, 32)
    views = np.arange(len(training)) % len(VIEWS)
    whole = inputs.device_cuts(training, views)
    monkeypatch.setattr("rdcache.data.device_inputs.MOST_PIXELS", 200_000)
    error = (inputs.device_cuts(training, views) - whole).abs()
    assert error.max() <= 1  # sums of other lengths have other last bits
    assert error.mean() < 1e-3


def test_evaluation_sees_pillows_own_cuts(dataset: ImageDataset) -> None:
    spec = ViewSpec.parse("3")
    parameters = view_parameters(spec, dataset.uids, [s.size for s in dataset.samples])
    held_out = np.flatnonzero(dataset.splits != "train")
    device = on_cpu(dataset, parameters, 32, working_scale=1.0)
    cpu = StudentInputs(dataset, parameters, 32, MEAN, STD)
    assert device.resident
    torch.testing.assert_close(device.batch(held_out, 0), cpu.batch(held_out, 0), atol=1e-5, rtol=0)


def test_without_room_on_the_device_the_cpu_cuts(
    dataset: ImageDataset, training: np.ndarray
) -> None:
    spec = ViewSpec.parse("3")
    parameters = view_parameters(spec, dataset.uids, [s.size for s in dataset.samples])
    device = on_cpu(dataset, parameters, 32, device_limit=1000)
    cpu = StudentInputs(dataset, parameters, 32, MEAN, STD)
    assert not device.resident
    assert "cut by the CPU" in str(device)
    torch.testing.assert_close(device.batch(training, 1), cpu.batch(training, 1), atol=1e-5, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_cuts_what_the_cpu_cuts(dataset: ImageDataset, training: np.ndarray) -> None:
    spec = ViewSpec.parse("6", symmetry="d4")
    parameters = view_parameters(spec, dataset.uids, [s.size for s in dataset.samples])
    inputs = on_cpu(dataset, parameters, 64, device=torch.device("cuda"))
    views = training % 6
    cuts = inputs.device_cuts(training, views).cpu().numpy()
    assert np.abs(cuts - pillow(inputs, training, views)).max() <= 1
