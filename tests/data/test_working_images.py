"""Images are reduced by what their views need, and kept where there is room."""

from __future__ import annotations

import os
import stat
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import Forked
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
from rdcache.data.pixel_file import FOLDER, open_pixel_file
from rdcache.data.working_images import working_sizes
from rdcache.errors import CorruptInputsError, DatasetError, FileWriteError, UsageError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SIZE = 16


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ImageDataset:
    """Thirty smooth pictures with sharp edges and some noise, 200 × 150 pixels and more."""
    random = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("set")
    for number in range(30):
        (folder / "ab"[number % 2]).mkdir(exist_ok=True)
        height, width = 150 + 5 * number, 200 + number
        y, x = np.mgrid[:height, :width]
        waves = 90 * np.sin(x / random.uniform(5, 30)) * np.cos(y / random.uniform(5, 30))
        picture = 120 + waves + 40 * (np.hypot(x - 90, y - 70) < random.uniform(20, 60))
        noisy = picture[..., None] + random.normal(0, 8, (height, width, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(
            folder / "ab"[number % 2] / f"{number}.png"
        )
    return load_dataset(f"folder:{folder}")


@pytest.fixture(scope="module")
def parameters(dataset: ImageDataset) -> np.ndarray:
    spec = ViewSpec.parse("4", symmetry="d4")
    return view_parameters(spec, dataset.uids, own_sizes(dataset))


def own_sizes(dataset: ImageDataset) -> list[tuple[int, int]]:
    return [sample.size for sample in dataset.samples]


def every_batch(inputs: StudentInputs) -> torch.Tensor:
    return torch.cat([inputs.batch(range(len(inputs.dataset)), view) for view in range(4)])


def grey_levels(batch: torch.Tensor) -> np.ndarray:
    """Undo the normalisation."""
    values = batch * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    return np.asarray(values * 255)


# -- how large


def test_every_crop_of_a_reduced_image_has_the_pixels_that_were_asked_for(
    dataset: ImageDataset, parameters: np.ndarray
) -> None:
    sizes = working_sizes(dataset, parameters, SIZE, 2.0)
    boxes = (parameters[..., 2:4] - parameters[..., :2]) * sizes
    assert boxes[:, dataset.splits == "train"].min() >= 2 * SIZE
    assert (sizes < own_sizes(dataset)).any()


def test_images_of_validation_and_test_and_images_hardly_too_large_stay_as_they_are(
    dataset: ImageDataset, parameters: np.ndarray
) -> None:
    own, training = np.array(own_sizes(dataset)), dataset.splits == "train"
    sizes = working_sizes(dataset, parameters, SIZE, 2.0)
    assert (sizes[~training] == own[~training]).all()
    assert (sizes[training] < own[training]).all()
    assert (working_sizes(dataset, parameters, SIZE, 0) == own).all()
    for_sixty = working_sizes(dataset, parameters[:1], 60, 2.0)  # 120 of 150 pixels, or of more
    assert ((for_sixty == own).all(axis=1) == (~training | (own.min(axis=1) < 160))).all()


def test_boxes_without_area_or_meaning_reduce_nothing(dataset: ImageDataset) -> None:
    for box in ((0.5, 0.5, 0.5, 0.5), (0.8, 0.8, 0.2, 0.2), (0.0, 0.0, float("nan"), 1.0)):
        parameters = np.tile((*box, 0.0, 0.0), (1, len(dataset), 1))
        sizes = working_sizes(dataset, parameters, SIZE, 2.0)
        assert (sizes == own_sizes(dataset)).all()


# -- what it does to the numbers


@pytest.mark.parametrize(("scale", "bound"), [(1.0, 5.0), (2.0, 1.0), (4.0, 0.5)])
def test_views_of_reduced_images_are_those_of_the_originals_to_a_grey_level_on_average(
    dataset: ImageDataset, parameters: np.ndarray, scale: float, bound: float
) -> None:
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD, working_scale=scale)
    for sample in np.flatnonzero(dataset.splits == "train"):
        seen = grey_levels(inputs.batch([sample] * 4, range(4)))
        for view in range(4):
            exact = cut_view(dataset.decode(sample), parameters[view, sample], SIZE)
            assert np.abs(seen[view] - exact.transpose(2, 0, 1)).mean() < bound


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["btc", "busi"])
def test_the_same_bound_holds_for_medical_images(real_data: Path, name: str) -> None:
    """At 32 pixels, for which images of 224 and more are reduced to a third of their pixels."""
    images = load_dataset(name, real_data)
    views = view_parameters(ViewSpec.parse("4"), images.uids, own_sizes(images))
    exact = StudentInputs(images, views, 32, MEAN, STD)
    reduced = StudentInputs(images, views, 32, MEAN, STD, working_scale=2.0)
    samples = np.flatnonzero((reduced.images.sizes < exact.images.sizes).any(axis=1))[::20]
    errors = [
        np.abs(reduced.cuts(samples, view)[0] - exact.cuts(samples, view)[0].astype(np.float64))
        for view in range(4)
    ]
    assert np.stack(errors).mean() < 0.5
    assert np.stack(errors).mean(axis=(2, 3, 4)).max() < 1.0


def test_validation_and_test_are_exact_whatever_the_scale(
    dataset: ImageDataset, parameters: np.ndarray
) -> None:
    held_out = np.flatnonzero(dataset.splits != "train")
    exact, reduced = (
        StudentInputs(dataset, parameters, SIZE, MEAN, STD, working_scale=scale) for scale in (0, 1)
    )
    assert torch.equal(exact.batch(held_out, 0), reduced.batch(held_out, 0))


def test_where_images_and_cuts_are_kept_changes_no_bit(
    dataset: ImageDataset, parameters: np.ndarray, tmp_path: Path
) -> None:
    def inputs(ram_limit: int, cache: Path | None = None) -> StudentInputs:
        return StudentInputs(
            dataset, parameters, SIZE, MEAN, STD, None, ram_limit, working_scale=1.5, cache=cache
        )

    expected = every_batch(inputs(2**30))
    for other in (inputs(0), inputs(40_000), inputs(0, tmp_path), inputs(2**30, tmp_path)):
        for _ in range(2):
            assert torch.equal(every_batch(other), expected)


def test_jitter_and_normalisation_are_the_formula_to_a_hundred_thousandth(
    dataset: ImageDataset, parameters: np.ndarray
) -> None:
    """Against float64, the steps one after the other, for a batch of several blocks."""
    inputs = StudentInputs(dataset, parameters, 96, MEAN, STD, Jitter(0.4, 0.5))
    samples = np.arange(len(dataset))
    seen = inputs.batch(samples, 1, np.random.default_rng(3))
    draws = np.random.default_rng(3).uniform(-1.0, 1.0, (2, len(samples)))
    for row, sample in enumerate(samples):
        cut = cut_view(dataset.decode(sample), parameters[1, sample], 96).astype(np.float64)
        bright = cut * (1 + 0.4 * draws[0, row])
        contrasted = (bright - bright.mean()) * (1 + 0.5 * draws[1, row]) + bright.mean()
        expected = (contrasted.clip(0, 255) / 255 - np.array(MEAN)) / np.array(STD)
        np.testing.assert_allclose(seen[row], expected.transpose(2, 0, 1), atol=1e-5)


def test_cuts_that_evaluation_needs_are_kept_first(
    dataset: ImageDataset, parameters: np.ndarray, decoded: Counter[int]
) -> None:
    held_out = np.flatnonzero(dataset.splits != "train")
    limit = 3 * SIZE**2 * len(held_out)
    inputs = StudentInputs(dataset, parameters, SIZE, MEAN, STD, ram_limit=limit)
    for _ in range(3):
        inputs.batch(range(len(dataset)), 0)
    assert {decoded[sample] for sample in held_out.tolist()} == {1}
    assert {decoded[sample] for sample in np.flatnonzero(dataset.splits == "train").tolist()} == {3}


# -- on disk


def cached(dataset: ImageDataset, parameters: np.ndarray, folder: Path) -> StudentInputs:
    return StudentInputs(
        dataset, parameters, SIZE, MEAN, STD, ram_limit=0, working_scale=2.0, cache=folder
    )


def test_images_on_disk_are_decoded_once_for_all_runs(
    dataset: ImageDataset, parameters: np.ndarray, decoded: Counter[int], tmp_path: Path
) -> None:
    first = every_batch(cached(dataset, parameters, tmp_path))
    assert decoded == dict.fromkeys(range(len(dataset)), 1)
    assert torch.equal(every_batch(cached(dataset, parameters, tmp_path)), first)
    assert decoded == dict.fromkeys(range(len(dataset)), 1)


def test_other_sizes_are_another_file(
    dataset: ImageDataset, parameters: np.ndarray, tmp_path: Path
) -> None:
    for size in (SIZE, SIZE, SIZE + 8):
        StudentInputs(dataset, parameters, size, MEAN, STD, working_scale=2.0, cache=tmp_path)
    assert len(list((tmp_path / FOLDER).glob("*.pixels"))) == 2


def test_images_that_were_reduced_by_another_rule_are_another_file(
    dataset: ImageDataset, parameters: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached(dataset, parameters, tmp_path)
    monkeypatch.setattr("rdcache.data.working_images.VERSION", 2)
    cached(dataset, parameters, tmp_path)
    assert len(list((tmp_path / FOLDER).glob("*.pixels"))) == 2


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_images_on_disk_are_their_owners_alone(
    dataset: ImageDataset, parameters: np.ndarray, tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        cached(dataset, parameters, tmp_path)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / FOLDER).stat().st_mode) == 0o700
    modes = {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / FOLDER).iterdir()}
    assert modes == {0o600}


def test_a_folder_that_others_can_open_is_refused(
    dataset: ImageDataset, parameters: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER).chmod(0o755)
    with pytest.raises(UsageError, match="open to others"):
        cached(dataset, parameters, tmp_path)


def test_a_damaged_image_is_one_sentence_and_others_can_be_read(
    dataset: ImageDataset, parameters: np.ndarray, tmp_path: Path
) -> None:
    inputs = cached(dataset, parameters, tmp_path)
    (path,) = (tmp_path / FOLDER).glob("*.pixels")
    with path.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 1]))
    inputs.batch([1], 0)
    with pytest.raises(CorruptInputsError, match="delete this file"):
        inputs.batch([0], 0)


def test_a_file_that_is_too_short_is_built_again(
    dataset: ImageDataset, parameters: np.ndarray, tmp_path: Path
) -> None:
    expected = every_batch(cached(dataset, parameters, tmp_path))
    (path,) = (tmp_path / FOLDER).glob("*.pixels")
    os.truncate(path, 1000)
    assert torch.equal(every_batch(cached(dataset, parameters, tmp_path)), expected)


def test_a_folder_below_a_file_is_refused_with_what_to_do(
    dataset: ImageDataset, parameters: np.ndarray, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FileWriteError, match="--inputs-cache"):
        cached(dataset, parameters, tmp_path / "file")


def test_an_image_that_cannot_be_read_leaves_no_file(
    parameters: np.ndarray, dataset: ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ImageDataset, index: int) -> np.ndarray:
        raise DatasetError("an image can no longer be read.")

    monkeypatch.setattr(ImageDataset, "decode", broken)
    with pytest.raises(DatasetError):
        cached(dataset, parameters, tmp_path)
    assert not [path for path in (tmp_path / FOLDER).iterdir() if path.suffix != ".lock"]


# -- several processes, and such as die

SIZES = np.full((200, 2), (30, 20))


def slow_image(number: int) -> np.ndarray:
    print(f"{number}\n", end="", flush=True)  # in one go: several threads say theirs
    time.sleep(0.002)
    return np.full((20, 30, 3), number, np.uint8)


def build_slowly(folder: Path) -> None:
    images = open_pixel_file(folder, "digest", 1, SIZES, slow_image)
    assert all((images[number] == number).all() for number in range(len(SIZES)))


def test_two_processes_build_one_file_once(tmp_path: Path) -> None:
    both = [Forked(build_slowly, tmp_path) for _ in range(2)]
    assert [each.wait() for each in both] == [0, 0], [each.stderr for each in both]
    built = sorted(len(each.stdout.split()) for each in both)
    assert built == [0, len(SIZES)]


def test_a_builder_killed_in_the_middle_leaves_nothing_that_is_used(tmp_path: Path) -> None:
    killed = Forked(build_slowly, tmp_path)
    while len(killed.stdout.split()) < 40:
        assert killed.code is None, killed.stderr
        time.sleep(0.001)
    killed.kill()
    names = {path.suffix for path in (tmp_path / FOLDER).iterdir()}
    assert names == {".lock", ".partial"}

    build_slowly(tmp_path)
    names = {path.suffix for path in (tmp_path / FOLDER).iterdir()}
    assert names == {".lock", ".pixels"}
