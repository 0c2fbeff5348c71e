"""One adaptation with one seed: prepared, trained from its checkpoint if it has one, written."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from rdcache.adaptation.config import AdaptConfig
from rdcache.adaptation.images import LiveImages
from rdcache.adaptation.objectives import LongTailed, Objective, Supervised
from rdcache.adaptation.result import finish
from rdcache.adaptation.run import AdaptRun
from rdcache.adaptation.sampling import TrainingImages
from rdcache.adaptation.training import AdaptTrainer
from rdcache.data import ImageDataset, ViewSpec
from rdcache.distillation.checkpoint import go_on, save_checkpoint
from rdcache.distillation.diverged import DIVERGED
from rdcache.distillation.hardware import autocast_for, environment
from rdcache.distillation.randomness import counted_seed
from rdcache.distillation.run import CHECKPOINT, CONFIG
from rdcache.distillation.run_folders import give_up, write_history
from rdcache.errors import TrainingError
from rdcache.files import write_text
from rdcache.methods import task_loss
from rdcache.models import Teacher
from rdcache.models.adapters import Adaptation, AdaptedNetwork, AdapterCard, build_adapted
from rdcache.models.weight_files import weight_tensors
from rdcache.progress import Progress

Note = Callable[[str], None]


class Task:
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
        """Train, from a checkpoint where there is one, and write the folder.

        Raises:
            TrainingError: it diverged, and the folder says how.
        """
        try:
            return self._run(on_progress)
        except TrainingError as error:
            write_history(self.folder, self.trainer.history)
            give_up(self.folder, error, {"adaptation": self.card.name})
            raise

    def _run(self, on_progress: Progress) -> AdaptRun:
        began = time.perf_counter()
        trainer, checkpoint = self.trainer, self.folder / CHECKPOINT
        status: Literal["trained", "resumed"] = "trained"
        if checkpoint.is_file():
            go_on(checkpoint, self.device, trainer.restore, "teacher and method")
            status = "resumed"
        write_text(self.folder / CONFIG, self._config_text())
        (self.folder / DIVERGED).unlink(missing_ok=True)  # by an earlier call, not gone on with

        def report(done: int) -> None:
            on_progress(done, trainer.steps, f"seed {self.seed}")

        report(trainer.steps_done)
        saved = time.monotonic()
        for _ in trainer.epochs(report):
            if time.monotonic() - saved >= self.config.checkpoint_seconds:
                write_history(self.folder, trainer.history)
                save_checkpoint(checkpoint, trainer.state())
                saved = time.monotonic()
        write_history(self.folder, trainer.history)
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
            "image_size": self.teacher.of_images.size,
            "training": {"samples": len(trainer.objective.images), "steps": trainer.steps},
            "environment": {**environment(self.device), "images": str(self.images)},
            "seconds_in_epochs": round(sum(line["seconds"] for line in trainer.history), 2),
        }
