"""From a live teacher and a dataset to adapted teachers: prepare, train, evaluate, write."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from rdcache.adaptation.config import AdaptConfig, config_from_options
from rdcache.adaptation.images import LiveImages
from rdcache.adaptation.objectives import LongTailed, Objective, Supervised
from rdcache.adaptation.result import finish
from rdcache.adaptation.run import FILES, AdaptRun
from rdcache.adaptation.sampling import TrainingImages
from rdcache.adaptation.training import AdaptTrainer
from rdcache.data import DatasetSpec, ImageDataset, ViewSpec, load_dataset
from rdcache.distillation.checkpoint import load_checkpoint, save_checkpoint
from rdcache.distillation.hardware import (
    autocast_for,
    environment,
    threads,
    within_device_memory,
)
from rdcache.distillation.randomness import counted_seed
from rdcache.distillation.run import CHECKPOINT, CONFIG, HISTORY, RESULT
from rdcache.errors import RunNotFoundError, UsageError
from rdcache.files import write_text
from rdcache.methods import task_loss
from rdcache.models import Teacher, choose_device, load_teacher
from rdcache.models.adapters import (
    Adaptation,
    AdaptedNetwork,
    AdapterCard,
    build_adapted,
    find_adapter,
)
from rdcache.models.devices import has_bfloat16
from rdcache.models.weight_files import weight_tensors
from rdcache.progress import Progress, ignore
from rdcache.store import folder_name

Note = Callable[[str], None]


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
        TrainingError: the loss became NaN or infinite.
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
        _refuse_interrupted(folder, resume, overwrite)
    runs = []
    spare: Teacher | None = teacher  # training changes a teacher: each seed wants a new one
    for seed, folder in folders.items():
        if (folder / RESULT).is_file() and not overwrite:
            (folder / CHECKPOINT).unlink(missing_ok=True)  # a kill between the two left it
            runs.append(AdaptRun(folder))
            continue
        if overwrite:
            for name in FILES:
                (folder / name).unlink(missing_ok=True)
        fresh, spare = spare or _load(config), None
        cuda = [device] if device.type == "cuda" else []
        with (
            threads(config.num_threads),
            torch.random.fork_rng(cuda),
            within_device_memory(),
        ):
            task = _Task(config, card, fresh, dataset, device, seed, folder, on_note)
            runs.append(task.run(on_progress))
    return runs


def run_folder(config: AdaptConfig, teacher: Teacher, dataset: ImageDataset, seed: int) -> Path:
    """Where a run of a resolved config lies; equal options on equal images share a folder."""
    digest = config.digest(teacher.weights.sha256, dataset.digest)[:8]
    parts = ("adapted", dataset.name, teacher.name, config.method, digest)
    return config.out / "-".join(folder_name(part) for part in parts) / f"seed{seed}"


class _Task:
    """One seed, from a fresh teacher to a finished folder."""

    def __init__(
        self,
        config: AdaptConfig,
        card: AdapterCard,
        teacher: Teacher,
        dataset: ImageDataset,
        device: torch.device,
        seed: int,
        folder: Path,
        on_note: Note,
    ) -> None:
        self.config, self.card, self.teacher, self.dataset = config, card, teacher, dataset
        self.device, self.seed, self.folder = device, seed, folder
        own = weight_tensors(teacher.network) if card.whole else {}
        self.original = {name: it.clone() for name, it in own.items()}
        torch.manual_seed(counted_seed("adapter", seed))
        options = card.settled(config.method_options)
        network = build_adapted(card, teacher, options, len(dataset.classes)).to(device)
        views = ViewSpec.parse(config.views, symmetry=dataset.symmetry, fit=config.fit)
        self.views = views.to_dict()
        self.images = LiveImages(dataset, teacher, views, config.jitter, device)
        on_note(f"images: {self.images}")
        self.trainer = self._trainer(network)
        self.adaptation = Adaptation(
            method=card.name,
            options=options.model_dump(mode="json"),
            teacher=teacher.name,
            teacher_sha256=teacher.weights.sha256,
            teacher_source=teacher.weights.source,
            dataset=dataset.name,
            dataset_digest=dataset.digest,
            classes=dataset.classes,
        )

    def run(self, on_progress: Progress) -> AdaptRun:
        """Train, from a checkpoint where there is one, and write the folder."""
        began = time.perf_counter()
        trainer, checkpoint = self.trainer, self.folder / CHECKPOINT
        status: Literal["trained", "resumed"] = "trained"
        if checkpoint.is_file():
            self._restore(checkpoint)
            status = "resumed"
        write_text(self.folder / CONFIG, self._config_text())

        def report(done: int) -> None:
            on_progress(done, trainer.steps, f"seed {self.seed}")

        report(trainer.steps_done)
        saved = time.monotonic()
        for _ in trainer.epochs(report):
            if time.monotonic() - saved >= self.config.checkpoint_seconds:
                self._write_history()
                save_checkpoint(checkpoint, trainer.state())
                saved = time.monotonic()
        self._write_history()
        facts = {**self._facts(), "seconds": round(time.perf_counter() - began, 2)}
        finish(trainer, self.folder, self.adaptation, self.original, facts)
        return AdaptRun(self.folder, status)

    def _trainer(self, network: AdaptedNetwork) -> AdaptTrainer:
        config, dataset = self.config, self.dataset
        training = TrainingImages(dataset, self.images.views, self.seed)
        objective: Objective
        if self.card.name == "lpt":
            objective = LongTailed(training, config.batch_size)
        else:
            loss = task_loss(
                dataset.task, training.counts.tolist(), config.label_smoothing, config.class_weights
            )
            objective = Supervised(training, config.batch_size, loss.to(self.device))
        autocast = autocast_for(self.device, config.amp)
        return AdaptTrainer(
            config, self.seed, network, self.card.whole, objective, self.images, autocast
        )

    def _restore(self, checkpoint: Path) -> None:
        state = load_checkpoint(checkpoint, self.device)
        try:
            self.trainer.restore(state)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise RunNotFoundError(
                "the checkpoint of this run is not one of this teacher and method.",
                file=checkpoint,
                next="start the run again with --overwrite",
            ) from error

    def _write_history(self) -> None:
        lines = [json.dumps(line) + "\n" for line in self.trainer.history]
        write_text(self.folder / HISTORY, "".join(lines))

    def _config_text(self) -> str:
        content = {
            "teacher": {"name": self.teacher.name, "weights": self.teacher.weights.to_dict()},
            "dataset": {"name": self.dataset.name, "digest": self.dataset.digest},
            "seed": self.seed,
            "config": self.config.model_dump(mode="json"),
        }
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)

    def _facts(self) -> dict[str, Any]:
        """What a result file says beside the metrics."""
        trainer, dataset = self.trainer, self.dataset
        return {
            "method": self.card.name,
            "method_options": dict(self.adaptation.options),
            "dataset": {
                "name": dataset.name,
                "spec": dataset.spec.to_dict(),
                "digest": dataset.digest,
                "classes": list(dataset.classes),
            },
            "teacher": {"name": self.teacher.name, "weights": self.teacher.weights.to_dict()},
            "views": self.views,
            "image_size": self.teacher.preprocessing.size,
            "training": {"samples": len(trainer.objective.images), "steps": trainer.steps},
            "environment": {**environment(self.device), "images": str(self.images)},
            "seconds_in_epochs": round(sum(line["seconds"] for line in trainer.history), 2),
        }


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


def _refuse_interrupted(folder: Path, resume: bool, overwrite: bool) -> None:
    finished = (folder / RESULT).is_file()
    if (folder / CHECKPOINT).is_file() and not (finished or resume or overwrite):
        raise UsageError(
            "an earlier run with these options was interrupted, or is still going on.",
            run=folder,
            next="--resume to go on with it, or --overwrite to start again",
        )
