"""Runs under way, each in its folder: trained side by side, with checkpoints and a history, until
there is a result, or a note that the training diverged.
"""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from rdcache.data.salting import CHECK
from rdcache.distillation.checkpoint import load_checkpoint, save_checkpoint
from rdcache.distillation.config import DistillConfig
from rdcache.distillation.diverged import DIVERGED, record_divergence
from rdcache.distillation.hardware import environment
from rdcache.distillation.preparing import Job, create_trainers
from rdcache.distillation.result import finish
from rdcache.distillation.run import CHECKPOINT, CONFIG, FILES, HISTORY, RESULT, Run
from rdcache.distillation.shared_sources import Sources
from rdcache.distillation.together import train_together
from rdcache.distillation.training import Trainer
from rdcache.errors import RunNotFoundError, TrainingError, UsageError
from rdcache.files import write_text
from rdcache.progress import Progress
from rdcache.store import Store, folder_name

Outcome = Run | TrainingError


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
            _restore(trainer, folder / CHECKPOINT, device)
            statuses[folder] = "resumed"
        write_text(folder / CONFIG, _config_text(store, trainer.config, trainer.seed))
        (folder / DIVERGED).unlink(missing_ok=True)  # by an earlier call that is not gone on with
        _write_history(folder, trainer)
    steps = sum(trainer.steps for trainer in trainers.values())
    note = ", ".join(dict.fromkeys(f"seed {job.seed}" for job in jobs.values()))

    def report(done: int) -> None:
        on_progress(done, steps, note)

    report(sum(trainer.steps_done for trainer in trainers.values()))
    folder_of = {id(trainer): folder for folder, trainer in trainers.items()}
    saved = dict.fromkeys(jobs, time.monotonic())
    for trainer in train_together(list(trainers.values()), report):
        folder = folder_of[id(trainer)]
        if trainer.error is not None:
            (folder / CHECKPOINT).unlink(missing_ok=True)  # it leads nowhere
        # Epochs of small data sets are shorter than the time that a disk takes for this.
        elif time.monotonic() - saved[folder] >= trainer.config.checkpoint_seconds:
            _write_history(folder, trainer)
            save_checkpoint(folder / CHECKPOINT, trainer.state())
            saved[folder] = time.monotonic()
    facts = {"seconds": round(time.perf_counter() - began, 2), "side_by_side": len(jobs)}
    outcomes: dict[Path, Outcome] = {}
    for folder, trainer in trainers.items():
        _write_history(folder, trainer)
        with suppress(TrainingError):  # by the last evaluation; the trainer keeps it
            if trainer.error is None:
                finish(trainer, folder, {**_facts(store, trainer, device), **facts})
        if trainer.error is None:
            outcomes[folder] = Run(folder, statuses[folder])
        else:
            (folder / CHECKPOINT).unlink(missing_ok=True)
            record_divergence(folder, trainer.error)
            outcomes[folder] = trainer.error.with_traceback(None)  # which would hold the trainer
    return outcomes


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


def clear_folder(folder: Path) -> None:
    """Remove the files of an earlier run, and nothing else; the result first."""
    for name in (RESULT, DIVERGED, *FILES):
        (folder / name).unlink(missing_ok=True)


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


def _write_history(folder: Path, trainer: Trainer) -> None:
    lines = [json.dumps(line) + "\n" for line in trainer.history]
    write_text(folder / HISTORY, "".join(lines))


def _facts(store: Store, trainer: Trainer, device: torch.device) -> dict[str, Any]:
    """What a result file says beside the metrics."""
    manifest, config = store.manifest, trainer.config
    return {
        "student": config.student,
        "method": config.method,
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
        "image_size": config.image_size,
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
