"""From a live teacher and a dataset to adapted teachers: prepare, train, evaluate, write."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from rdcache.adaptation.config import AdaptConfig, config_from_options
from rdcache.adaptation.run import FILES, AdaptRun
from rdcache.adaptation.task import Note, Task
from rdcache.data import DatasetSpec, ImageDataset, load_dataset
from rdcache.distillation.diverged import in_one
from rdcache.distillation.hardware import threads, within_device_memory
from rdcache.distillation.run_folders import earlier_outcome, refuse_interrupted
from rdcache.errors import TrainingError, UsageError
from rdcache.models import Teacher, choose_device, load_teacher
from rdcache.models.adapters import AdapterCard, build_adapted, find_adapter
from rdcache.models.devices import has_bfloat16
from rdcache.progress import Progress, ignore
from rdcache.store import folder_name
from rdcache.tasks import require_image_classification


def adapt(
    teacher: str,
    dataset: str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress = ignore,
    **options: Any,
) -> AdaptRun:
    """Adapt a teacher to a dataset: `adapt("timm:vit_tiny_patch16_224", "busi", method="lora")`.

    Args:
        resume: go on with a run that was interrupted.
        overwrite: train again even if the same run is finished.
        on_progress: called with (steps done, steps in all, seed).
        options: fields of `AdaptConfig`, `seed`, and options of the method.

    Raises:
        RdcacheError: see `adapt_seeds`.
    """
    config = config_from_options(teacher, dataset, options)
    if len(config.seeds) != 1:
        raise UsageError(
            "adapt trains one teacher.", seeds=config.seeds, instead="adapt_seeds(config)"
        )
    (run,) = adapt_seeds(config, resume=resume, overwrite=overwrite, on_progress=on_progress)
    return run


def adapt_seeds(
    config: AdaptConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress = ignore,
    on_note: Note = lambda note: None,
) -> list[AdaptRun]:
    """Adapt a teacher to a dataset, once for each seed. What is finished is returned as it is.

    Args:
        on_note: told, in a sentence, what was chosen for this machine.

    Raises:
        UnknownNameError: no such teacher, dataset, method or option.
        UsageError: the method does not apply to the teacher, options do not go together, or an
            interrupted run without `resume`.
        DatasetNotFoundError, WeightsNotFoundError: files that are not there.
        TrainingError: a loss became NaN or infinite; all other seeds are finished then.
        DeviceMemoryError: training does not fit into the memory of the GPU.
    """
    if resume and overwrite:
        raise UsageError("a run can be gone on with (--resume) or overwritten, not both.")
    config, card = config.resolved(), find_adapter(config.method)
    device = choose_device(config.device)
    teacher = _load(config)
    _require_applicable(card, teacher, config)
    dataset = _dataset(config, on_progress)
    config = config.model_copy(update={"amp": _precision(config, device)})
    folders = {seed: run_folder(config, teacher, dataset, seed) for seed in config.seeds}
    for folder in folders.values():
        refuse_interrupted(folder, resume, overwrite)
    outcomes = {
        seed: earlier_outcome(folder, AdaptRun, FILES, resume, overwrite)
        for seed, folder in folders.items()
    }
    spare: Teacher | None = teacher  # training changes a teacher: each seed wants a new one
    for seed, folder in folders.items():
        if outcomes[seed] is not None:
            continue
        fresh, spare = spare or _load(config), None
        cuda = [device] if device.type == "cuda" else []
        with (
            threads(config.num_threads),
            torch.random.fork_rng(cuda),
            within_device_memory(),
        ):
            task = Task(config, card, fresh, dataset, device, seed, folder, on_note)
            try:
                outcomes[seed] = task.run(on_progress)
            except TrainingError as error:
                outcomes[seed] = error.with_traceback(None)  # which would hold the trainer
    runs = [it for it in outcomes.values() if isinstance(it, AdaptRun)]
    diverged = [
        (f"{teacher.name} by {config.method}, seed {seed}", it)
        for seed, it in outcomes.items()
        if isinstance(it, TrainingError)
    ]
    if diverged:
        raise in_one(diverged, len(runs))
    return runs


def run_folder(config: AdaptConfig, teacher: Teacher, dataset: ImageDataset, seed: int) -> Path:
    """Where a run of a resolved config lies; equal options on equal images share a folder."""
    digest = config.digest(teacher.weights.sha256, dataset.digest)[:8]
    parts = ("adapted", dataset.name, teacher.name, config.method, digest)
    return config.out / "-".join(folder_name(part) for part in parts) / f"seed{seed}"


def _load(config: AdaptConfig) -> Teacher:
    return load_teacher(config.teacher, weights=config.weights, data_dir=config.data_dir)


def _require_applicable(card: AdapterCard, teacher: Teacher, config: AdaptConfig) -> None:
    """Refuse what could not become a teacher, before images are looked at.

    Raises:
        UsageError: naming why.
    """
    if teacher.adaptation is not None:
        raise UsageError(
            "an adapted teacher cannot be adapted again.",
            teacher=teacher.name,
            next=f"adapt {teacher.adaptation.teacher}",
        )
    with torch.random.fork_rng([]):
        build_adapted(card, teacher, card.settled(config.method_options), 2)


def _dataset(config: AdaptConfig, on_progress: Progress) -> ImageDataset:
    dataset = load_dataset(
        DatasetSpec(
            name=config.dataset,
            seed=config.split_seed,
            val_fraction=config.val_fraction,
            drop_leaks=config.drop_leaks,
        ),
        config.data_dir,
        salt=config.uid_salt,
        on_progress=on_progress,
    )
    require_image_classification("`rdcache adapt`", dataset.task, dataset.dimensions)
    if not (dataset.splits == "test").any():
        raise UsageError("there are no test images to evaluate on.", dataset=dataset.name)
    if config.select == "best" and not (dataset.splits == "val").any():
        raise UsageError(
            "there is no validation split to select an epoch on.", next="--select last"
        )
    return dataset


def _precision(config: AdaptConfig, device: torch.device) -> Literal["bf16", "off"]:
    if config.amp == "auto":
        return "bf16" if device.type == "cuda" and has_bfloat16(device) else "off"
    return config.amp
