"""A finished run's metrics, computed again from its saved student and the images alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rdcache.data import (
    DatasetSpec,
    ImageDataset,
    ViewSpec,
    load_dataset,
    salt_as_recorded,
    view_parameters,
)
from rdcache.distillation.batches import CleanViews
from rdcache.distillation.evaluators import evaluator_for
from rdcache.distillation.hardware import autocast_for, on_device
from rdcache.distillation.run import Run
from rdcache.distillation.student_views import seen_size, student_inputs
from rdcache.errors import StaleStoreError, UsageError
from rdcache.models import Student, choose_device


def evaluate_run(
    run: Run,
    split: Literal["train", "val", "test"] = "test",
    *,
    dataset: str | None = None,
    data_dir: Path | None = None,
    device: str = "auto",
    salt: str | None = None,
) -> dict[str, Any]:
    """Classify the images of a split by a run's saved student; needs neither store nor teacher.

    Args:
        dataset: name of the dataset, where it is another now, as in `folder:PATH`.
        salt: of the uids, where the run's store had salted ones.

    Returns:
        The metrics of the task, as `Run.metrics` has them.

    Raises:
        StaleStoreError: the dataset has changed since.
        UsageError: the split is empty, or the uids are salted and no salt is given.
    """
    loaded = dataset_of(run, dataset, data_dir, salt)
    samples = np.flatnonzero(loaded.splits == split)
    if not len(samples):
        raise UsageError(f"there are no {split} images in {loaded.name}.")
    place = choose_device(device)
    student = on_device(run.student, place)
    clean = clean_inputs(run, loaded, student, place)
    config = run.config["config"]
    autocast = autocast_for(place, config["amp"])
    classes = tuple(run.result["dataset"]["classes"])
    evaluator = evaluator_for(loaded, classes, config.get("nsd_tolerance"))
    return evaluator.metrics(evaluator.predict(student, samples, clean, autocast()))


def clean_inputs(
    run: Run, dataset: ImageDataset, student: Student, device: torch.device
) -> CleanViews:
    """The clean views of a dataset as the student of a run sees them."""
    size = seen_size(run.result["views"], dataset, int(run.result["image_size"]))
    # Evaluation keeps to cuts by the CPU, whatever it runs on.
    inputs = student_inputs(
        dataset,
        clean_views(run, dataset),
        size,
        torch.device("cpu"),
        (student.mean, student.std, None),
    )
    return CleanViews(inputs, device)


def dataset_of(
    run: Run, dataset: str | None, data_dir: Path | None, salt: str | None
) -> ImageDataset:
    """The images that a run was made with; the arguments are those of `evaluate_run`.

    Raises:
        StaleStoreError: the dataset has changed since.
        UsageError: the uids are salted and no salt is given.
    """
    recorded = run.result["dataset"]
    spec = DatasetSpec.from_dict(recorded["spec"])
    salt = salt_as_recorded(recorded, salt, run.path)
    loaded = load_dataset(replace(spec, name=dataset) if dataset else spec, data_dir, salt=salt)
    if loaded.digest != recorded["digest"]:
        raise StaleStoreError(
            "the dataset has changed since this run was made.",
            run=f"{run.path}  dataset digest {recorded['digest'][:8]}…",
            now=f"{loaded.name}  dataset digest {loaded.digest[:8]}…, {len(loaded)} samples",
        )
    return loaded


def clean_views(run: Run, dataset: ImageDataset) -> np.ndarray:
    """Parameters of the clean view, as the run saw it: float64 (1, samples, 6), of volumes
    (1, samples, 10).
    """
    views = run.result["views"]
    patch = tuple(views["patch"]) if views.get("patch") else None
    clean = ViewSpec.parse(
        "clean",
        symmetry=views["symmetry"],
        fit=views["fit"],
        patch=patch,
        stride=int(views.get("stride", 1)),
    )
    return view_parameters(clean, dataset.uids, [sample.size for sample in dataset.samples])
