"""One recipe over images and volumes, classified and segmented: from extraction to its table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_inputs import Pooling, save_image
from torch import nn

from rdcache.recipes import Places, Recipe, rows_of_cells, run_recipe
from rdcache.report import compare, plain_table

AFFINE = np.diag([1.0, 1.0, 2.0, 1.0])


def draw_classes(folder: Path, random: np.random.Generator) -> None:
    for label, name in enumerate(("dark", "light")):
        for number in range(10):
            pixels = random.integers(0, 90, (40, 44, 3)) + 100 * label
            save_image(folder / name / f"{number}.png", pixels.astype(np.uint8))


def draw_masks(folder: Path, random: np.random.Generator) -> None:
    for number in range(16):
        pixels = random.integers(0, 90, (40, 44), dtype=np.uint8)
        mask = np.zeros_like(pixels)
        mask[8:28, 10 : 20 + number] = 255
        pixels[mask > 0] += 120
        save_image(folder / "images" / f"{number}.png", pixels)
        save_image(folder / "masks" / f"{number}.png", mask)


def draw_nodules(file: Path, random: np.random.Generator) -> None:
    """A set of MedMNIST in its own layout."""
    arrays = {}
    for split, count in (("train", 8), ("val", 4), ("test", 4)):
        labels = np.arange(count).reshape(-1, 1) % 2
        noise = random.integers(0, 90, (count, 28, 28, 28))
        arrays[f"{split}_images"] = (noise + 100 * labels[..., None, None]).astype(np.uint8)
        arrays[f"{split}_labels"] = labels.astype(np.uint8)
    file.parent.mkdir(parents=True)
    np.savez(file, **arrays)


def draw_organs(folder: Path, random: np.random.Generator) -> None:
    """A task of the Medical Segmentation Decathlon in its own layout."""
    nibabel = pytest.importorskip("nibabel")
    for number in range(10):
        mask = np.zeros((18, 20, 10), np.uint8)
        mask[4:13, 5:14, 2 : 6 + number % 2] = 1
        values = (random.normal(0, 40, mask.shape) + 120 * mask).astype(np.int16)
        for place, array in (("imagesTr", values), ("labelsTr", mask)):
            (folder / place).mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(array, AFFINE), folder / place / f"case{number}.nii")
    facts = {"labels": {"0": "background", "1": "organ"}, "modality": {"0": "MRI"}}
    (folder / "dataset.json").write_text(json.dumps(facts))


def test_one_recipe_runs_four_kinds_of_task(
    script: Callable[[nn.Module], str], tmp_path: Path
) -> None:
    random, data = np.random.default_rng(0), tmp_path / "data"
    draw_classes(data / "classes", random)
    draw_masks(data / "pairs", random)
    draw_nodules(data / "medmnist" / "nodulemnist3d.npz", random)
    draw_organs(data / "msd" / "Task99_Organ", random)
    classes, pairs = f"folder:{data / 'classes'}", f"folder:{data / 'pairs'}"
    recipe = Recipe(
        title="Four kinds of task",
        teachers=[script(Pooling(1.0))],
        methods=["none", "drd"],
        extract={"views": 2, "val_fraction": 0.2},
        distill={"epochs": 1, "image_size": 32, "batch_size": 8, "device": "cpu"},
        per_method={"drd": {"method_options": {"stages": 1}}},
        grids=[
            {"datasets": [classes], "students": ["shufflenet-x0.5"]},
            {
                "datasets": [pairs],
                "students": ["unet-shufflenet-x0.5"],
                "distill": {"batch_size": 4},
            },
            {
                "datasets": ["nodulemnist3d"],
                "students": ["resnet3d-18"],
                "extract": {"slices": 14},
                "distill": {"image_size": 16},
            },
            {
                "datasets": ["msd:Task99_Organ"],
                "students": ["unet3d"],
                "extract": {"slices": 8, "patch": [16, 16, 16]},
                "distill": {"batch_size": 4},
            },
        ],
    )
    places = Places(root=tmp_path / "stores", data_dir=data, out=tmp_path / "runs")
    cells = list(run_recipe(recipe, places))
    assert [(cell.method, cell.metric) for cell in cells] == [
        ("none", "accuracy"),
        ("drd", "accuracy"),
        ("none", "dice"),
        ("drd", "dice"),
        ("none", "accuracy"),
        ("drd", "accuracy"),
        ("none", "dice"),
        ("drd", "dice"),
    ]
    for cell in cells:
        (run,) = cell.runs
        assert isinstance(run.metrics[cell.metric], float)
        assert np.isfinite(run.history[-1]["loss"])
    comparisons = compare(rows_of_cells(cells))
    assert all(it.gain is not None for it in comparisons if it.row.method == "drd")
    table = plain_table(recipe.title, comparisons)
    names = [heading.joined for heading in table.headings]
    assert {"accuracy (%)", "dice (%)", "nsd (%)"} <= set(names)
    again = list(run_recipe(recipe, places))
    assert [cell.runs[0].status for cell in again] == ["done before"] * 8
