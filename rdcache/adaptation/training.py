"""One teacher on its way to a dataset: stages of epochs, each step the sum of an objective's terms.

Everything random is counted from (seed, stage, epoch, step), so that a run that goes on from a
checkpoint ends in the same weights as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rdcache.adaptation.config import AdaptConfig
from rdcache.adaptation.images import LiveImages
from rdcache.adaptation.objectives import Objective, Terms
from rdcache.adaptation.optimisation import create_optimiser
from rdcache.distillation.evaluation import Predictions, predict
from rdcache.distillation.hardware import Stopwatch
from rdcache.distillation.metrics import classification_metrics
from rdcache.distillation.optimisation import learning_rate
from rdcache.distillation.randomness import counted_seed
from rdcache.distillation.training import Best, Line
from rdcache.errors import TrainingError
from rdcache.models.adapters import AdaptedNetwork, Classified


@dataclass(frozen=True)
class Stage:
    """A part of the training."""

    name: str
    epochs: int


class AdaptTrainer:
    """A network that is being adapted, and what is needed to go on with it.

    Args:
        config: resolved.
        network: on the device.
        whole: whether the teacher's own tensors are trained.
        autocast: makes the context that forward passes of training run in.

    Attributes:
        stages: what there is to do.
        stage, epoch: what is next: number of a stage, and of an epoch in it.
        history: one line of numbers an epoch.
        best: what was best on validation.
    """

    def __init__(
        self,
        config: AdaptConfig,
        seed: int,
        network: AdaptedNetwork,
        whole: bool,
        objective: Objective,
        images: LiveImages,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.config, self.seed, self.whole = config, seed, whole
        self.network, self.objective, self.images = network, objective, images
        self.autocast = autocast
        names = ("adapter",) if network.adapter is None else network.adapter.stages
        self.stages = divided(config.epochs, names)
        self.stage = self.epoch = 0
        self.history: list[Line] = []
        self.best: Best | None = None
        self.optimiser: torch.optim.Optimizer | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch."""
        return len(self.objective.images) // self.config.batch_size

    @property
    def steps(self) -> int:
        """Steps of all stages."""
        return self.steps_per_epoch * sum(stage.epochs for stage in self.stages)

    @property
    def steps_done(self) -> int:
        """Steps of the epochs that are done."""
        before = sum(stage.epochs for stage in self.stages[: self.stage])
        return self.steps_per_epoch * (before + self.epoch)

    @property
    def done(self) -> bool:
        """Whether all stages are done."""
        return self.stage == len(self.stages)

    @property
    def epochs_done(self) -> int:
        """Epochs of all stages together."""
        return sum(stage.epochs for stage in self.stages[: self.stage]) + self.epoch

    def learned(self) -> dict[str, torch.Tensor]:
        """The tensors that training changes."""
        return {
            name: value
            for name, value in self.network.state_dict().items()
            if self.whole or not name.startswith("base.")
        }

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs."""
        return {
            "network": self.learned(),
            "optimiser": None if self.optimiser is None else self.optimiser.state_dict(),
            "stage": self.stage,
            "epoch": self.epoch,
            "history": self.history,
            "best": None if self.best is None else vars(self.best),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        if state["network"].keys() != self.learned().keys():
            raise KeyError("other tensors are trained")
        self.network.load_state_dict(state["network"], strict=False)
        self.stage, self.epoch = state["stage"], state["epoch"]
        self.history = state["history"]
        self.best = None if state["best"] is None else Best(**state["best"])
        if state["optimiser"] is not None:
            self._begin().load_state_dict(state["optimiser"])

    def epochs(self, on_step: Callable[[int], None]) -> Iterator[Line]:
        """Train to the end, and yield each epoch's line of numbers.

        Args:
            on_step: called with the steps done.

        Raises:
            TrainingError: a term of the loss is not finite.
        """
        while not self.done:
            yield self._train_epoch(on_step)

    def _train_epoch(self, on_step: Callable[[int], None]) -> Line:
        if self.optimiser is None:
            self._begin()
        stage, began = self.stages[self.stage], self.steps_done
        watch = Stopwatch(self.images.device)
        torch.manual_seed(counted_seed("dropout", stage.name, self.seed, self.epoch))
        self._train_mode()
        sums: Terms = {}
        picks = self.objective.picks(stage.name, self.epoch)
        batches = self.images.training(picks, stage.name, self.seed, self.epoch)
        with watch.running():
            for number, (images, target) in enumerate(batches):
                for name, value in self._step(images, target, stage, number).items():
                    sums[name] = sums[name] + value if name in sums else value
                on_step(began + number + 1)
            line: Line = {"stage": stage.name, "epoch": self.epoch, "lr": self._rate()}
            line |= {name: float(total) / len(picks) for name, total in sums.items()}
            self._require_finite(line, sums)
            last = self.stage == len(self.stages) - 1
            line |= self._validate(stage, last)
        line["seconds"] = round(watch.seconds(), 3)
        self.epoch += 1
        self.history.append(line)
        if self.epoch == stage.epochs:
            self.stage, self.epoch, self.optimiser = self.stage + 1, 0, None
        return line

    def predict(self, samples: np.ndarray, network: AdaptedNetwork | None = None) -> Predictions:
        """Classify images through the clean view, in evaluation mode and in float32, as phase 1
        runs a teacher unless told otherwise.

        Args:
            network: another network than the one that is trained.
        """
        labels = self.images.dataset.labels[samples]
        classifier = _Classifier(network or self.network)
        return predict(classifier, self.images.clean(samples), samples, labels)

    def samples(self, split: str) -> np.ndarray:
        """Numbers of the samples of a split."""
        return np.flatnonzero(self.images.dataset.splits == split)

    def _begin(self) -> torch.optim.Optimizer:
        """Settle what the stage trains, and by what optimiser."""
        self.network.requires_grad_(False)
        trained = {f"head.{name}": it for name, it in self.network.head.named_parameters()}
        adapter = self.network.adapter
        if adapter is not None:
            chosen = {id(it) for it in adapter.begin_stage(self.stages[self.stage].name)}
            named = adapter.named_parameters()
            trained |= {f"adapter.{name}": it for name, it in named if id(it) in chosen}
        if self.whole:
            named = self.network.base.named_parameters()
            trained |= {f"base.{name}": it for name, it in named}
        for parameter in trained.values():
            parameter.requires_grad_(True)
        self.optimiser = create_optimiser(trained, self.config, self._layer_decay())
        return self.optimiser

    def _layer_decay(self) -> float:
        """Of transformers alone: blocks of convolutional networks are of other kinds."""
        equal = getattr(self.network.base, "isotropic", False)
        return (self.config.layer_decay or 1.0) if equal else 1.0

    def _train_mode(self) -> None:
        """Only what is trained behaves as in training: a frozen network keeps its statistics."""
        self.network.train(self.whole)
        self.network.head.train()
        if self.network.adapter is not None:
            self.network.adapter.train()

    def _step(self, images: torch.Tensor, target: torch.Tensor, stage: Stage, number: int) -> Terms:
        assert self.optimiser is not None
        steps = self.steps_per_epoch
        rate = learning_rate(
            self.config.schedule,
            self.epoch * steps + number,
            stage.epochs * steps,
            self.config.warmup_epochs * steps,
            1.0,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["largest"]
        with self.autocast():
            output = self.network.classify(images)
            progress = self.epoch / stage.epochs
            terms = self.objective.terms(output, target, stage.name, progress)
            loss = torch.stack([value.float() for value in terms.values()]).sum()
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if self.config.clip:
            groups = self.optimiser.param_groups
            nn.utils.clip_grad_norm_([p for it in groups for p in it["params"]], self.config.clip)
        self.optimiser.step()
        return {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}

    def _rate(self) -> float:
        assert self.optimiser is not None
        return float(max(group["lr"] for group in self.optimiser.param_groups))

    def _require_finite(self, line: Line, sums: Terms) -> None:
        wrong = [name for name in sums if not math.isfinite(line[name])]
        if wrong:
            raise TrainingError(
                f"training diverged in epoch {self.epoch}: the loss is not a finite number.",
                terms=", ".join(name for name in wrong if name != "loss") or "loss",
                next=f"a smaller --lr than {self.config.lr:g}, or --clip 1",
            )

    def _validate(self, stage: Stage, last: bool) -> Line:
        """Look at the validation split, and remember the epoch if it is the best of the last stage
        so far.
        """
        done = self.epoch + 1
        due = done == stage.epochs or done % self.config.validate_every == 0
        samples = self.samples("val")
        if not due or not len(samples):
            return {}
        predictions = self.predict(samples)
        classes = self.images.dataset.classes
        metrics = classification_metrics(predictions.labels, predictions.probabilities, classes)
        value = metrics[self.config.select_metric]
        if last and (self.best is None or value >= self.best.value):
            weights = {name: it.detach().cpu().clone() for name, it in self.learned().items()}
            self.best = Best(self.epochs_done, value, weights)
        return {f"val_{name}": metrics[name] for name in ("accuracy", "balanced_accuracy", "nll")}


class _Classifier(nn.Module):
    """The network as `predict` wants it: images in, features and logits out."""

    def __init__(self, network: AdaptedNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> Classified:
        return self.network.classify(images)


def divided(epochs: int, names: tuple[str, ...]) -> list[Stage]:
    """The stages of a training: each gets an equal part of the epochs, later ones what is left."""
    ends = [epochs * (number + 1) // len(names) for number in range(len(names))]
    begins = [0, *ends[:-1]]
    stages = [
        Stage(name, end - begin) for name, begin, end in zip(names, begins, ends, strict=True)
    ]
    return [stage for stage in stages if stage.epochs]
