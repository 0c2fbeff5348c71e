"""Runs on volumes: segmented at their own spacing by a sliding window, and classified."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from small_volumes import drawn_dataset
from torch import nn

from rdcache.data import DatasetSpec, Volume, VolumeDataset, load_dataset, require_volumes
from rdcache.distillation import Run, distill, evaluate_run, predict_files
from rdcache.distillation.config import config_from_options
from rdcache.distillation.preparing import Job
from rdcache.distillation.run_folders import train_runs
from rdcache.distillation.segmentation_evaluator import VolumeSegmentationEvaluator
from rdcache.distillation.shared_sources import Sources
from rdcache.distillation.whole_images import volume_logits
from rdcache.errors import UsageError
from rdcache.store import TapSpec

from .conftest import Tiny, write_store

Options = Callable[..., dict[str, Any]]
CASES, SPACING = 10, (1.5, 1.0, 1.0)
PATCH = (16, 16, 16)
TAPS = (TapSpec("s4", "map3d", (8, 3, 3, 3)),)


def write_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    import nibabel

    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


@pytest.fixture(scope="module")
def organ(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """NIfTI volumes with a bright organ, anisotropic, turned and flipped, one without any organ."""
    data_dir = tmp_path_factory.mktemp("volumes")
    folder = data_dir / "msd" / "Task99_Organ"
    random = np.random.default_rng(0)
    affine = np.diag([-1.0, 1.0, 3.0, 1.0])
    turn = np.array([[0.98, -0.2, 0], [0.2, 0.98, 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    for number in range(CASES):
        shape = (18 + number % 3, 20, 8 + number % 2)
        mask = np.zeros(shape, np.uint8)
        if number:
            mask[4:13, 5:14, 2:6] = 1
        values = gaussian_filter(random.normal(0, 60, shape), 0.7) + 120 * mask
        for place, array in (("imagesTr", values.astype(np.int16)), ("labelsTr", mask)):
            write_nifti(folder / place / f"case{number}.nii.gz", array, affine)
    facts = {"labels": {"0": "background", "1": "organ"}, "modality": {"0": "CT"}}
    (folder / "dataset.json").write_text(json.dumps(facts))
    spec = DatasetSpec("msd:Task99_Organ", spacing=SPACING)
    dataset = load_dataset(spec, data_dir)
    store = write_store(data_dir / "store", dataset, taps=TAPS, patch=PATCH)
    return Tiny(folder, data_dir, dataset, store)


@pytest.fixture
def quick(organ: Tiny, options: Options) -> Options:
    def build(**changes: Any) -> dict[str, Any]:
        same: dict[str, Any] = {"student": "unet3d", "batch_size": 2, "epochs": 1}
        given = options(data_dir=organ.data_dir, **{**same, **changes})
        return given if "image_size" in changes else {**given, "image_size": 16}

    return build


def test_volumes_are_segmented_at_the_spacing_and_on_the_grid_of_their_files(
    organ: Tiny, quick: Options, tmp_path: Path
) -> None:
    import nibabel

    run = distill(organ.store, method="none", **quick())
    assert (run.task, run.metric) == (("segmentation", 3), "dice")
    assert run.metrics["distance_unit"] == "mm"
    assert run.result["window"] == [-175.0, 250.0]
    again = evaluate_run(run, data_dir=organ.data_dir, device="cpu")
    assert again["dice"] == pytest.approx(run.metrics["dice"])

    (sample,) = np.flatnonzero(organ.dataset.splits == "test")[:1].tolist()
    file = organ.dataset.samples[sample].path
    (said,) = predict_files(run, [file], tmp_path / "masks", device="cpu")
    written, original = nibabel.load(said.mask), nibabel.load(file)
    assert written.shape == original.shape
    assert np.allclose(written.affine, original.affine)
    predicted = np.asarray(written.dataobj) > 0
    truth = np.asarray(nibabel.load(organ.dataset.samples[sample].masks[0]).dataobj) > 0
    assert truth.sum() == require_volumes(organ.dataset).mask_at_original_spacing(sample).sum()
    total = predicted.sum() + truth.sum()
    dice = 2 * (predicted & truth).sum() / total if total else 1.0
    with (run.path / "predictions.csv").open() as table:
        rows = {row["uid"]: row for row in csv.DictReader(table)}
    assert float(rows[str(organ.dataset.uids[sample])]["dice"]) == pytest.approx(dice, abs=1e-6)


def test_a_student_of_images_is_refused_for_volumes(organ: Tiny, quick: Options) -> None:
    with pytest.raises(UsageError, match="unet3d"):
        distill(organ.store, method="none", **quick(student="unet-resnet18"))


def test_whole_volumes_are_no_patches_to_segment_by(
    organ: Tiny, quick: Options, tmp_path: Path
) -> None:
    store = write_store(tmp_path / "store", organ.dataset, taps=TAPS)
    with pytest.raises(UsageError, match="patch by patch") as refused:
        distill(store, method="none", **quick())
    assert "--patch" in str(refused.value)


def test_patches_with_one_deepest_position_are_refused_by_what_compares_positions(
    organ: Tiny, quick: Options
) -> None:
    with pytest.raises(UsageError, match=r"at s4 a batch has 2 of them[\s\S]*--patch"):
        distill(organ.store, method="drd", **quick())


class Pointwise(nn.Module):
    """Logits of each voxel from that voxel alone, so that no window can matter."""

    mean, std = (0.5,), (0.25,)

    def forward(self, volumes: torch.Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.cat([volumes, 1 - volumes], dim=1))


@pytest.mark.parametrize("shape", [(20, 13, 9), (5, 6, 7)], ids=["larger", "smaller"])
def test_windows_that_slide_over_a_volume_say_what_one_look_at_all_of_it_says(
    shape: tuple[int, int, int],
) -> None:
    values = np.random.default_rng(0).normal(0, 1, (1, *shape)).astype(np.float32)
    volume = Volume(values, (1, 1, 1), np.eye(4), np.float32(-2), np.float32(2))
    logits = volume_logits(Pointwise(), volume, (8, 8, 8), torch.device("cpu"))  # type: ignore[arg-type]
    seen = (torch.from_numpy(volume.unit()) - 0.5) / 0.25
    assert logits.shape == (2, *shape)
    assert torch.allclose(logits, torch.cat([seen, 1 - seen]), atol=1e-4)


class Patches:
    """Two patches of each of three volumes; only the second ones show anything of the organ."""

    inputs = SimpleNamespace(parameters=np.zeros((2, 3, 10)))

    def images(self, samples: np.ndarray, view: int) -> list[torch.Tensor]:
        return [torch.full((len(samples), 1, 4, 4, 4), float(view))]

    def masks(self, samples: np.ndarray, view: int) -> list[torch.Tensor]:
        masks = torch.zeros((len(samples), 4, 4, 4), dtype=torch.int64)
        masks[:, :2] = view
        return [masks]


def test_patches_that_show_nothing_do_not_select_a_student_that_finds_nothing() -> None:
    dataset = drawn_dataset("segmentation")
    evaluator = VolumeSegmentationEvaluator(dataset, dataset.classes)

    def validated(logit: float) -> dict[str, float]:
        """Of a student that takes what is brighter for the organ."""
        blind = nn.Module()
        blind.forward = lambda volumes: SimpleNamespace(
            logits=torch.cat([volumes * 0, volumes - logit], dim=1)
        )
        numbers, _ = evaluator.validate(blind, np.arange(3), Patches(), nullcontext())  # type: ignore[arg-type]
        return numbers

    assert validated(2.0) == {"dice": 0, "iou": 0}
    assert validated(0.5)["dice"] == pytest.approx(2 / 3)  # half of the second patches
    assert validated(0.5)["iou"] == pytest.approx(1 / 2)


def balls(task: str, channels: int = 1) -> VolumeDataset:
    """Drawn volumes with a class each, or with two findings."""
    drawn = drawn_dataset(channels=channels)
    samples = tuple(
        replace(
            sample,
            spacing=(2.0, 1.0, 1.0),
            label=(number % 2, number // 2 % 2) if task == "multilabel" else number % 2,
        )
        for number, sample in enumerate(drawn.samples)
    )
    same = {each.name: getattr(drawn, each.name) for each in fields(drawn)}
    return VolumeDataset(**{**same, "samples": samples, "task": task})


@pytest.mark.parametrize(
    ("task", "method", "channels"), [("multiclass", "rd", 1), ("multilabel", "hint", 2)]
)
def test_volumes_are_classified_whole(
    tmp_path: Path, quick: Options, task: str, method: str, channels: int
) -> None:
    dataset = balls(task, channels)
    store = write_store(tmp_path / "store", dataset, taps=TAPS)
    own = {"width": 8} if method == "rd" else {}
    given = quick(student="resnet3d-18", batch_size=8, image_size=16, select="last", **own)
    config = config_from_options(given.pop("student"), method, given).resolved()
    config = config.for_task(task, 3)
    sources = Sources(store, dataset, torch.device("cpu"), lambda note: None)
    job = {tmp_path / "seed0": Job(config, 0)}
    (run,) = train_runs(sources, job, lambda done, total, note="": None).values()
    assert isinstance(run, Run)
    assert run.task == (task, 3)
    assert run.metric == {"multiclass": "accuracy", "multilabel": "auroc"}[task]
    assert np.isfinite(run.history[-1]["loss"])
    (test,) = np.flatnonzero(dataset.splits == "test")[:1].tolist()
    file = tmp_path / "volume.npy"
    np.save(file, dataset.decode(test).values)
    (said,) = predict_files(run, [file], device="cpu")
    assert list(said.probabilities) == list(dataset.classes)
    assert all(0 <= p <= 1 for p in said.probabilities.values())
