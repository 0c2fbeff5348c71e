"""Runs on images with any number of findings each."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from rdcache.data import load_dataset
from rdcache.distillation import distill, evaluate_run, predict_files
from rdcache.distillation.folds import training_folds
from rdcache.distillation.subset import Subset

from .conftest import Tiny, write_store

Options = Callable[..., dict[str, Any]]
FINDINGS, IMAGES = ("dark", "striped"), 40


@pytest.fixture(scope="module")
def findings(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Noise that may be dark, striped, both or neither."""
    data_dir = tmp_path_factory.mktemp("findings")
    random = np.random.default_rng(0)
    lines = ["path,labels"]
    for number in range(IMAGES):
        pixels = random.integers(120, 200, (36, 40, 3), dtype=np.uint8)
        present = [name for bit, name in enumerate(FINDINGS) if number >> bit & 1]
        if "dark" in present:
            pixels -= 80
        if "striped" in present:
            pixels[::4] = 255
        Image.fromarray(pixels).save(data_dir / f"{number:02}.png")
        lines.append(f"{number:02}.png,{';'.join(present)}")
    (data_dir / "table.csv").write_text("\n".join(lines) + "\n")
    dataset = load_dataset(f"table:{data_dir / 'table.csv'}", data_dir)
    return Tiny(data_dir, data_dir, dataset, write_store(data_dir / "store", dataset))


def test_a_run_is_told_by_its_auroc(findings: Tiny, options: Options, tmp_path: Path) -> None:
    run = distill(findings.store, method="none", **options(data_dir=findings.data_dir))
    assert (run.task, run.metric) == (("multilabel", 2), "auroc")
    assert {"val_auroc", "val_bce"} <= run.history[-1].keys()
    test = np.flatnonzero(findings.dataset.splits == "test")
    with (run.path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["uid"] for row in rows] == list(findings.dataset.uids[test])
    areas = []
    for number, name in enumerate(findings.dataset.classes):
        labels = [int(row[f"label_{name}"]) for row in rows]
        assert labels == findings.dataset.labels[test, number].tolist()
        areas.append(roc_auc_score(labels, [float(row[f"p_{name}"]) for row in rows]))
    assert run.metrics["auroc"] == pytest.approx(np.mean(areas))
    again = evaluate_run(run, data_dir=findings.data_dir, device="cpu")
    assert again["auroc"] == pytest.approx(run.metrics["auroc"])

    sample = findings.dataset.samples[int(test[0])]
    (said,) = predict_files(run, [sample.path], device="cpu")
    for name, p in said.probabilities.items():
        assert p == pytest.approx(float(rows[0][f"p_{name}"]), abs=1e-5)
        assert (name in said.predicted) == (p >= 0.5)


@pytest.mark.parametrize("method", ["rd", "hint"])
def test_methods_learn_several_findings_from_a_store(
    findings: Tiny, options: Options, method: str
) -> None:
    own = {"width": 8} if method == "rd" else {}
    changes = options(data_dir=findings.data_dir, epochs=1, **own)
    run = distill(findings.store, method=method, **changes)
    assert ("teacher_auroc" in run.metrics) == (method == "rd")
    assert np.isfinite(run.history[-1]["loss"])


def test_parts_and_folds_of_the_training_images_have_every_finding(findings: Tiny) -> None:
    store = findings.store
    part = Subset(0.4, 0).of_training(store)
    assert (np.asarray(store.labels)[part].sum(axis=0) > 0).all()
    folds = training_folds(store, store.samples_of("train"), 2, 0)
    for fold in range(2):
        assert (np.asarray(store.labels)[folds == fold].sum(axis=0) > 0).all()


def test_the_target_of_a_batch_is_one_number_for_each_finding(
    findings: Tiny, options: Options
) -> None:
    from rdcache.distillation.config import config_from_options
    from rdcache.distillation.preparing import create_trainer
    from rdcache.distillation.sampling import Picks

    given = options(data_dir=findings.data_dir)
    config = config_from_options(given.pop("student"), "none", given).resolved()
    trainer = create_trainer(findings.store, findings.dataset, config, 0, torch.device("cpu"))
    rows = np.flatnonzero(findings.dataset.splits == "train")[:3]
    target = trainer.source.cached(Picks(rows, np.zeros(3, np.int64)), ()).target
    assert target.dtype == torch.float32
    assert target.tolist() == findings.dataset.labels[rows].tolist()
