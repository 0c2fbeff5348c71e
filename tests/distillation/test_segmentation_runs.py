"""Segmentation of images from a store to masks in a folder."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from rdcache.data import load_dataset
from rdcache.distillation import distill, evaluate_run, load_run, predict_files
from rdcache.distillation.preparing import class_counts, create_trainer
from rdcache.distillation.sampling import Picks
from rdcache.distillation.whole_images import image_logits
from rdcache.errors import DatasetError, UsageError

from .conftest import Tiny, write_store

Options = Callable[..., dict[str, Any]]
STUDENT = "unet-shufflenet-x0.5"
IMAGES = 24


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Bright rectangles in noise and their masks, one in six of which is empty."""
    data_dir = tmp_path_factory.mktemp("masked")
    folder = data_dir / "pairs"
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(IMAGES):
        height, width = random.integers(36, 52, 2)
        pixels = random.integers(0, 90, (height, width), dtype=np.uint8)
        mask = np.zeros((height, width), np.uint8)
        if number % 6:
            top, left = random.integers(4, 14, 2)
            mask[top : top + 18, left : left + 14] = 255
        pixels[mask > 0] += 120
        for name, content in (("images", pixels), ("masks", mask)):
            Image.fromarray(content).save(folder / name / f"{number:02}.png")
    dataset = load_dataset(f"folder:{folder}", data_dir)
    return Tiny(folder, data_dir, dataset, write_store(data_dir / "store", dataset))


@pytest.fixture
def quick(masked: Tiny, options: Options) -> Options:
    def build(**changes: Any) -> dict[str, Any]:
        same = {"student": STUDENT, "batch_size": 4, "data_dir": masked.data_dir}
        return options(**{**same, **changes})

    return build


def test_a_run_tells_dice_case_by_case_and_its_student_segments_files(
    masked: Tiny, quick: Options, tmp_path: Path
) -> None:
    run = distill(masked.store, method="none", **quick())
    assert (run.task, run.metric) == (("segmentation", 2), "dice")
    assert {"val_dice", "val_iou", "ce"} <= run.history[-1].keys()
    test = np.flatnonzero(masked.dataset.splits == "test")
    with (run.path / "predictions.csv").open() as file:
        rows = {row["uid"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(masked.dataset.uids[test])
    mean = np.mean([float(row["dice"]) for row in rows.values()])
    assert run.metrics["dice"] == pytest.approx(mean, abs=1e-6)
    assert run.metrics["distance_unit"] == "px"
    assert f"dice {mean:.3f}" in repr(run)

    again = evaluate_run(load_run(run.path), data_dir=masked.data_dir, device="cpu")
    assert again["dice"] == pytest.approx(run.metrics["dice"])
    assert again["of_class"] == run.metrics["of_class"]

    files = [masked.dataset.samples[sample].path for sample in test]
    found = predict_files(run, files, tmp_path / "masks", device="cpu")
    for sample, each in zip(test.tolist(), found, strict=True):
        assert each.mask is not None
        predicted = np.asarray(Image.open(each.mask)) > 0
        truth = masked.dataset.decode_mask(sample) > 0
        assert predicted.shape == truth.shape, "in the image's own size"
        total = predicted.sum() + truth.sum()
        dice = 2 * (predicted & truth).sum() / total if total else 1.0
        uid = str(masked.dataset.uids[sample])
        assert float(rows[uid]["dice"]) == pytest.approx(dice, abs=1e-6)
        assert each.extent == {masked.dataset.classes[1]: int(predicted.sum())}


def test_masks_are_cut_as_the_images_of_a_batch_are(masked: Tiny, quick: Options) -> None:
    config = quick(method="none")
    trainer = _trainer(masked, config)
    train = np.flatnonzero(masked.dataset.splits == "train")[:4]
    picks = Picks(train, np.array([0, 1, 2, 1]))
    cached = trainer.source.cached(picks, ())
    assert cached.target.shape == (4, 32, 32)
    assert torch.equal(cached.target, trainer.source.inputs.masks(picks.samples, picks.views))
    assert cached.target.dtype == torch.int64


def test_pixels_of_the_training_masks_are_what_balances_classes(masked: Tiny) -> None:
    rows = np.flatnonzero(masked.dataset.splits == "train")
    counts = [np.bincount(masked.dataset.decode_mask(row).ravel(), minlength=2) for row in rows]
    assert class_counts(masked.dataset, rows) == np.sum(counts, axis=0).tolist()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": "shufflenet-x0.5"}, "unet-shufflenet-x0.5"),
        ({"select_metric": "accuracy"}, "dice, iou"),
        ({"method": "rd"}, "segmentation"),
    ],
)
def test_what_is_for_classification_is_refused_in_one_sentence(
    masked: Tiny, quick: Options, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError) as refused:
        distill(masked.store, **quick(**{"method": "none", **changes}))
    assert said in str(refused.value)


def test_what_a_view_does_not_show_is_background() -> None:
    logits = torch.zeros(2, 8, 8)
    logits[1] = 1.0
    whole = image_logits(logits, (0.25, 0.0, 0.75, 1.0, 0, 0), (10, 20))
    predicted = whole.argmax(dim=0)
    assert predicted[:, 5:15].all()
    assert not predicted[:, :5].any()
    assert not predicted[:, 15:].any()


def test_logits_of_a_whole_view_are_resized_to_the_image() -> None:
    logits = torch.arange(16.0).view(1, 4, 4)
    whole = image_logits(logits, (0.0, 0.0, 1.0, 1.0), (8, 8))
    expected = torch.nn.functional.interpolate(logits[None], (8, 8), mode="bilinear")[0]
    assert torch.equal(whole, expected)


def test_masks_go_to_a_folder_and_never_over_each_other(masked: Tiny, quick: Options) -> None:
    run = distill(masked.store, method="none", **quick(epochs=1))
    image = masked.dataset.samples[0].path
    with pytest.raises(UsageError, match="need a folder"):
        predict_files(run, [image], device="cpu")
    with pytest.raises(UsageError, match="one name"):
        predict_files(run, [image, image], masked.data_dir / "out", device="cpu")
    with pytest.raises(UsageError, match="replace"):
        predict_files(run, [image], image.parent, device="cpu")
    broken = masked.data_dir / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DatasetError, match="cannot be predicted"):
        predict_files(run, [broken], masked.data_dir / "out", device="cpu")


def _trainer(masked: Tiny, options: dict[str, Any]) -> Any:
    from rdcache.distillation.config import config_from_options

    options = dict(options)
    config = config_from_options(options.pop("student"), options.pop("method"), options)
    device = torch.device("cpu")
    return create_trainer(masked.store, masked.dataset, config.resolved(), 0, device)
