"""A finished run's metrics, computed again from its saved student and the images alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from rdcache.data import (
    CLEAN_VIEW,
    DatasetSpec,
    ImageDataset,
    StudentInputs,
    ViewSpec,
    load_dataset,
    salt_as_recorded,
    view_parameters,
)
from rdcache.distillation.batches import EVALUATION_BATCH
from rdcache.distillation.evaluation import predict
from rdcache.distillation.hardware import autocast_for
from rdcache.distillation.metrics import classification_metrics
from rdcache.distillation.run import Run
from rdcache.errors import StaleStoreError, UsageError
from rdcache.models import choose_device


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
        The metrics of `classification_metrics`.

    Raises:
        StaleStoreError: the dataset has changed since.
        UsageError: the split is empty, or the uids are salted and no salt is given.
    """
    loaded = dataset_of(run, dataset, data_dir, salt)
    samples = np.flatnonzero(loaded.splits == split)
    if not len(samples):
        raise UsageError(f"there are no {split} images in {loaded.name}.")
    place = choose_device(device)
    student = run.student.to(place, memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = StudentInputs(
        loaded, clean_views(run, loaded), run.result["image_size"], student.mean, student.std
    )
    images = (
        inputs.batch(samples[start : start + EVALUATION_BATCH], CLEAN_VIEW).to(place)
        for start in range(0, len(samples), EVALUATION_BATCH)
    )
    autocast = autocast_for(place, run.config["config"]["amp"])
    predictions = predict(student, images, samples, loaded.labels[samples], autocast())
    return classification_metrics(
        predictions.labels, predictions.probabilities, tuple(run.result["dataset"]["classes"])
    )


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
    """Parameters of the clean view, as the run saw it: float64 (1, samples, 6)."""
    views = run.result["views"]
    clean = ViewSpec.parse("clean", symmetry=views["symmetry"], fit=views["fit"])
    return view_parameters(clean, dataset.uids, [sample.size for sample in dataset.samples])
