"""Runs under way, each in its folder: trained side by side, with checkpoints and a history, until
there is a result, or a note that the training diverged.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import yaml

from rdcache.data.salting import CHECK
from rdcache.distillation.checkpoint import go_on, save_checkpoint
from rdcache.distillation.config import DistillConfig
from rdcache.distillation.diverged import DIVERGED, record_divergence, recorded_divergence
from rdcache.distillation.hardware import environment
from rdcache.distillation.preparing import Job, create_trainers
from rdcache.distillation.result import finish
from rdcache.distillation.run import CHECKPOINT, CONFIG, HISTORY, RESULT, FinishedRun, Run
from rdcache.distillation.shared_sources import Sources
from rdcache.distillation.together import train_together
from rdcache.distillation.training import Line, Trainer
from rdcache.errors import TrainingError, UsageError
from rdcache.files import write_text
from rdcache.progress import Progress
from rdcache.store import Store, folder_name
from rdcache.tasks import task_of

Outcome = Run | TrainingError
Made = TypeVar("Made", bound=FinishedRun)


def run_folder(store: Store, config: DistillConfig, seed: int) -> Path:
    """Where a run of a resolved config lies; equal options on equal tensors share a folder."""
    parts = (
        folder_name(store.manifest["dataset"]["name"]),
        "+".join(folder_name(member.manifest["teacher"]["name"]) for member in store.members),
        folder_name(config.student),
        folder_name(config.method),
        config.digest(store.fingerprint.digest)[:8],
    )
    return config.out / "-".join(parts) / f"seed{seed}"


def train_runs(
    sources: Sources, jobs: dict[Path, Job], on_progress: Progress
) -> dict[Path, Outcome]:
    """Train some runs side by side, from their checkpoints where they have one, and write their
    folders; of those that diverge, give back why.
    """
    began = time.perf_counter()
    store, device = sources.store, sources.device
    trainers = dict(zip(jobs, create_trainers(sources, list(jobs.values())), strict=True))
    statuses: dict[Path, Literal["trained", "resumed"]] = dict.fromkeys(jobs, "trained")
    for folder, trainer in trainers.items():
        if (folder / CHECKPOINT).is_file():
            go_on(folder / CHECKPOINT, device, trainer.restore, "student and method")
            statuses[folder] = "resumed"
        write_text(folder / CONFIG, _config_text(store, trainer.config, trainer.seed))
        (folder / DIVERGED).unlink(missing_ok=True)  # by an earlier call that is not gone on with
        write_history(folder, trainer.history)
    steps = sum(trainer.steps for trainer in trainers.values())
    note = ", ".join(dict.fromkeys(f"seed {job.seed}" for job in jobs.values()))

    def report(done: int) -> None:
        on_progress(done, steps, note)

    report(sum(trainer.steps_done for trainer in trainers.values()))
    folder_of = {id(trainer): folder for folder, trainer in trainers.items()}
    saved = dict.fromkeys(jobs, time.monotonic())
    for trainer in train_together(list(trainers.values()), report):
        folder = folder_of[id(trainer)]
        if trainer.error is not None:  # noted at once: others may go on for hours, or be killed
            give_up(folder, trainer.error, _about_store(store))
        # Epochs of small data sets are shorter than the time that a disk takes for this.
        elif time.monotonic() - saved[folder] >= trainer.config.checkpoint_seconds:
            write_history(folder, trainer.history)
            save_checkpoint(folder / CHECKPOINT, trainer.state())
            saved[folder] = time.monotonic()
    facts = {"seconds": round(time.perf_counter() - began, 2), "side_by_side": len(jobs)}
    outcomes: dict[Path, Outcome] = {}
    for folder, trainer in trainers.items():
        write_history(folder, trainer.history)
        with suppress(TrainingError):  # by the last evaluation; the trainer keeps it
            if trainer.error is None:
                finish(trainer, folder, {**_facts(store, trainer, device), **facts})
        if trainer.error is None:
            outcomes[folder] = Run(folder, statuses[folder])
        else:
            outcomes[folder] = give_up(folder, trainer.error, _about_store(store))
    return outcomes


def refuse_interrupted(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse to begin where an earlier run was interrupted, or may still be going on.

    Raises:
        UsageError: saying how to go on.
    """
    finished = (folder / RESULT).is_file()
    if (folder / CHECKPOINT).is_file() and not (finished or resume or overwrite):
        raise UsageError(
            "an earlier run with these options was interrupted, or is still going on.",
            run=folder,
            next="--resume to go on with it, or --overwrite to start again",
        )


def earlier_outcome(
    folder: Path, make: Callable[[Path], Made], files: Sequence[str], resume: bool, overwrite: bool
) -> Made | TrainingError | None:
    """What a run has come to in an earlier call, if that is to stand. If it is to be overwritten,
    nothing is left of it.

    Args:
        make: opens the folder of a finished run.
        files: that an earlier run may have left there.
    """
    if overwrite:
        _clear(folder, files)
        return None
    if (folder / RESULT).is_file():
        (folder / CHECKPOINT).unlink(missing_ok=True)  # a kill between the two left it
        return make(folder)
    return recorded_divergence(folder) if resume else None


def _clear(folder: Path, files: Sequence[str]) -> None:
    """Remove the files of an earlier run, and nothing else; the result first."""
    for name in (RESULT, DIVERGED, *files):
        (folder / name).unlink(missing_ok=True)


def write_history(folder: Path, history: Sequence[Line]) -> None:
    """Write one line of numbers an epoch."""
    lines = [json.dumps(line) + "\n" for line in history]
    write_text(folder / HISTORY, "".join(lines))


def give_up(folder: Path, error: TrainingError, of: Mapping[str, Any]) -> TrainingError:
    """Note that a run has diverged, and remove its checkpoint, which leads nowhere.

    Args:
        of: see `record_divergence`.

    Returns:
        The error without its traceback, which would hold the trainer.
    """
    record_divergence(folder, error, of)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return error.with_traceback(None)


def _config_text(store: Store, config: DistillConfig, seed: int) -> str:
    content = {
        "store": _identity(store),
        "seed": seed,
        "config": config.model_dump(mode="json"),
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _identity(store: Store) -> dict[str, Any]:
    """Which store a run is of; of several that were read in step, each."""
    members = [str(member.location) for member in store.members]
    several = {"members": members} if len(members) > 1 else {}
    return {"location": store.where, "fingerprint": store.fingerprint.digest, **several}


def _facts(store: Store, trainer: Trainer, device: torch.device) -> dict[str, Any]:
    """What a result file says beside the metrics."""
    config = trainer.config
    return {
        "student": config.student,
        "method": config.method,
        **_about_store(store),
        "image_size": config.image_size,
        **_intensities(trainer),
        "store": _identity(store),
        "training": {
            "samples": len(trainer.training),
            "of": len(store.samples_of("train")),
            "left_out": trainer.training.left_out,
            "missing_views": trainer.training.missing_views,
            "steps": trainer.steps,
        },
        "environment": {**environment(device), **trainer.ways},
        "seconds_in_epochs": round(sum(line["seconds"] for line in trainer.history), 2),
    }


def _intensities(trainer: Trainer) -> dict[str, Any]:
    """The window that all volumes of a dataset share, which new ones are to be seen through too."""
    window = getattr(trainer.source.clean.dataset, "window", None)
    return {} if window is None else {"window": list(window)}


def _about_store(store: Store) -> dict[str, Any]:
    """Which images a store is of, through which teacher, in which views, and what for."""
    manifest = store.manifest
    task, dimensions = task_of(manifest["dataset"])
    return {
        "task": task,
        "dimensions": dimensions,
        "dataset": {
            name: manifest["dataset"][name]
            for name in ("name", "spec", "digest", "classes", CHECK)
            if name in manifest["dataset"]
        },
        "teacher": {
            name: manifest["teacher"][name]
            for name in ("name", "weights", "adapted")
            if name in manifest["teacher"]
        },
        "views": manifest["views"],
    }
