"""Phase 2 from a store to finished runs: prepare, train, evaluate, write.

One call may train several seeds; images and store are opened once for all of them. What is
finished already is returned as it is.
"""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml

from rdcache.data import ImageDataset, Jitter, inputs_for
from rdcache.data.salting import CHECK
from rdcache.distillation.batches import BatchSource
from rdcache.distillation.checkpoint import load_checkpoint, save_checkpoint
from rdcache.distillation.config import DistillConfig, config_from_options
from rdcache.distillation.folds import training_folds
from rdcache.distillation.hardware import (
    autocast_enabled,
    autocast_for,
    environment,
    threads,
)
from rdcache.distillation.randomness import counted_seed
from rdcache.distillation.result import finish
from rdcache.distillation.run import CHECKPOINT, CONFIG, FILES, HISTORY, RESULT, Run
from rdcache.distillation.sampling import TrainingSamples
from rdcache.distillation.source import choose_store, open_dataset
from rdcache.distillation.statistics import channel_statistics
from rdcache.distillation.training import Trainer
from rdcache.errors import RunNotFoundError, TrainingError, UsageError
from rdcache.files import write_text
from rdcache.methods import MethodContext, create_method, task_loss
from rdcache.models import choose_device, create_student
from rdcache.progress import Progress, ignore
from rdcache.store import Store, folder_name

LEAST_BATCH = 2


def distill(
    store: Store | str | Path | None = None,
    student: str = "shufflenet",
    method: str = "rd",
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress = ignore,
    **options: Any,
) -> Run:
    """Train a student from a store of cached tensors.

    Args:
        store: a store or its folder; by default the newest complete one under the root.
        student: see `rdcache list students`.
        method: see `rdcache list methods`.
        resume: go on with a run that was interrupted.
        overwrite: train again even if the same run is finished.
        on_progress: called with (steps done, steps in all, seed).
        options: fields of `DistillConfig`, `seed`, and options of the method:
            `distill(store, epochs=240, seed=1, temperature=2.0)`.

    Raises:
        RdcacheError: see `distill_seeds`.
    """
    config = config_from_options(student, method, options)
    if len(config.seeds) != 1:
        raise UsageError(
            "distill trains one student.", seeds=config.seeds, instead="distill_seeds(store, …)"
        )
    runs = distill_seeds(store, config, resume=resume, overwrite=overwrite, on_progress=on_progress)
    return runs[0]


def distill_seeds(
    store: Store | str | Path | None,
    config: DistillConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Progress = ignore,
) -> list[Run]:
    """Train one student for each seed of the config; see `summarise` for mean and deviation.

    Raises:
        StoreNotFoundError: there is no store that fits.
        StaleStoreError: the images are not those of the store.
        UsageError: options that do not go together, or an interrupted run without `resume`.
        UnknownNameError: no such student, method, option, or tap in the store.
        TrainingError: the loss became NaN or infinite.
    """
    if resume and overwrite:
        raise UsageError("a run can be gone on with (--resume) or overwritten, not both.")
    config = config.resolved()
    opened = choose_store(
        store,
        root=config.root,
        dataset=config.dataset,
        teacher=config.teacher,
        require_signature=config.require_signature,
    )
    config = _as_computed(config, opened)
    folders = {seed: run_folder(opened, config, seed) for seed in config.seeds}
    for folder in folders.values():
        _refuse_interrupted(folder, resume, overwrite)

    @cache
    def dataset() -> ImageDataset:
        return open_dataset(opened, config.dataset, config.data_dir, config.uid_salt)

    runs = []
    for seed, folder in folders.items():
        if (folder / RESULT).is_file() and not overwrite:
            (folder / CHECKPOINT).unlink(missing_ok=True)  # a kill between the two left it
            runs.append(Run(folder))
            continue
        if overwrite:
            _clear(folder)
        with threads(config.num_threads), torch.random.fork_rng(_cuda_devices(config)):
            run = _train(opened, dataset(), config, seed, folder, on_progress)
        runs.append(run)
    return runs


def run_folder(store: Store, config: DistillConfig, seed: int) -> Path:
    """Where a run of a resolved config lies; equal options on equal tensors share a folder."""
    parts = (
        store.manifest["dataset"]["name"],
        store.manifest["teacher"]["name"],
        config.student,
        config.method,
        config.digest(store.fingerprint.digest)[:8],
    )
    return config.out / "-".join(folder_name(part) for part in parts) / f"seed{seed}"


def _train(
    store: Store,
    dataset: ImageDataset,
    config: DistillConfig,
    seed: int,
    folder: Path,
    on_progress: Progress,
) -> Run:
    """Train one seed, from its checkpoint if there is one, and write its folder."""
    began = time.perf_counter()
    device = choose_device(config.device)
    trainer = create_trainer(store, dataset, config, seed, device)
    checkpoint = folder / CHECKPOINT
    status: Literal["trained", "resumed"] = "trained"
    if checkpoint.is_file():
        _restore(trainer, checkpoint, device)
        status = "resumed"
    write_text(folder / CONFIG, _config_text(store, config, seed))
    _write_history(folder, trainer)

    def report(steps: int) -> None:
        on_progress(steps, trainer.steps, f"seed {seed}")

    report(trainer.steps_done)
    try:
        for _ in trainer.run(report):
            _write_history(folder, trainer)
            if len(trainer.history) % config.checkpoint_every == 0:
                save_checkpoint(checkpoint, trainer.state())
        facts = _facts(store, config, trainer, device, time.perf_counter() - began)
        finish(trainer, folder, facts)
    except TrainingError:
        checkpoint.unlink(missing_ok=True)  # it leads nowhere
        raise
    return Run(folder, status)


def create_trainer(
    store: Store, dataset: ImageDataset, config: DistillConfig, seed: int, device: torch.device
) -> Trainer:
    """Build student, method and batches for one seed of a resolved config.

    The student's initial weights depend on the seed alone, so that methods can be compared in
    pairs.
    """
    classes = tuple(store.manifest["dataset"]["classes"])
    training = TrainingSamples(store, seed, config.views)
    training.batches(config.batch_size, 0)  # refuse a batch that is too large before all else
    if config.batch_size < LEAST_BATCH:
        raise UsageError("batch norm needs batches of at least 2.", given=config.batch_size)
    if not (store.splits == "test").any():
        raise UsageError(
            "there are no test images to evaluate on.",
            store=store.location,
            next="a dataset with a test split, or extract without --drop-leaks",
        )
    if config.select == "best" and not (store.splits == "val").any():
        raise UsageError(
            "there is no validation split to select an epoch on.", next="--select last"
        )
    torch.manual_seed(counted_seed("student", seed))
    student = create_student(config.student, len(classes), config.student_weights)
    student = student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.manual_seed(counted_seed("method", seed))
    counts = np.bincount(np.asarray(store.labels)[training.rows], minlength=len(classes))
    context = MethodContext(
        taps=store.taps,
        default_tap=store.manifest["teacher"]["default_tap"],
        feature_dim=student.feature_dim,
        num_classes=len(classes),
        classifier=student.classifier,
        task_loss=task_loss(
            store.manifest["dataset"]["task"],
            counts.tolist(),
            config.label_smoothing,
            config.class_weights,
        ),
        statistics=lambda tap: channel_statistics(store, tap),
        folds=lambda count: torch.from_numpy(training_folds(store, training.rows, count, seed)),
        epochs=config.epochs,
        batch_size=config.batch_size,
    )
    method = create_method(config.method, config.method_options, context).to(device)
    jitter = Jitter(config.jitter, config.jitter) if config.jitter else None
    inputs = inputs_for(device)(
        dataset,
        store.view_parameters[: config.views],
        config.image_size,
        student.mean,
        student.std,
        jitter,
        working_scale=config.working_scale,
        cache=config.inputs_cache,
    )
    source = BatchSource(store, inputs, method.taps, device)
    autocast = autocast_for(device, config.amp)
    return Trainer(config, seed, student, method, source, training, classes, autocast)


def _as_computed(config: DistillConfig, store: Store) -> DistillConfig:
    """Settle what depends on this machine and this store, so that the run's digest has it."""
    device = choose_device(config.device)
    amp = "bf16" if autocast_enabled(device, config.amp) else "off"
    views = min(config.views or store.views, store.views)
    return config.model_copy(update={"amp": amp, "views": views})


def _restore(trainer: Trainer, checkpoint: Path, device: torch.device) -> None:
    """Go on from a checkpoint.

    Raises:
        RunNotFoundError: it is damaged, or of another network.
    """
    state = load_checkpoint(checkpoint, device)
    try:
        trainer.restore(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunNotFoundError(
            "the checkpoint of this run is not one of this student and method.",
            file=checkpoint,
            next="start the run again with --overwrite",
        ) from error


def _refuse_interrupted(folder: Path, resume: bool, overwrite: bool) -> None:
    finished = (folder / RESULT).is_file()
    if (folder / CHECKPOINT).is_file() and not (finished or resume or overwrite):
        raise UsageError(
            "an earlier run with these options was interrupted, or is still going on.",
            run=folder,
            next="--resume to go on with it, or --overwrite to start again",
        )


def _clear(folder: Path) -> None:
    """Remove the files of an earlier run, and nothing else; the result first."""
    for name in (RESULT, *FILES):
        (folder / name).unlink(missing_ok=True)


def _cuda_devices(config: DistillConfig) -> list[torch.device]:
    device = choose_device(config.device)
    return [device] if device.type == "cuda" else []


def _config_text(store: Store, config: DistillConfig, seed: int) -> str:
    content = {
        "store": {"location": str(store.location), "fingerprint": store.fingerprint.digest},
        "seed": seed,
        "config": config.model_dump(mode="json"),
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _write_history(folder: Path, trainer: Trainer) -> None:
    lines = [json.dumps(line) + "\n" for line in trainer.history]
    write_text(folder / HISTORY, "".join(lines))


def _facts(
    store: Store, config: DistillConfig, trainer: Trainer, device: torch.device, seconds: float
) -> dict[str, Any]:
    """What a result file says beside the metrics."""
    manifest = store.manifest
    return {
        "student": config.student,
        "method": config.method,
        "dataset": {
            name: manifest["dataset"][name]
            for name in ("name", "spec", "digest", "classes", CHECK)
            if name in manifest["dataset"]
        },
        "teacher": {name: manifest["teacher"][name] for name in ("name", "weights")},
        "views": manifest["views"],
        "image_size": config.image_size,
        "student_inputs": str(trainer.source.inputs),
        "store": {"location": str(store.location), "fingerprint": store.fingerprint.digest},
        "training": {
            "samples": len(trainer.training),
            "left_out": trainer.training.left_out,
            "missing_views": trainer.training.missing_views,
            "steps": trainer.steps,
        },
        "environment": environment(device),
        "seconds": round(seconds, 2),
        "seconds_in_epochs": round(sum(line["seconds"] for line in trainer.history), 2),
    }
