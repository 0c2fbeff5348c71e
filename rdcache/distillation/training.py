"""One student on its way: stages of epochs, each step the sum of a method's terms.

It knows no method by name; `together.py` has the loop that gives it its batches. Everything random
is counted from (seed, stage, epoch, step), so that a run that goes on from a checkpoint ends in the
same weights as one that was never interrupted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from rdcache.distillation.batches import BatchSource, TrainingBatch
from rdcache.distillation.config import DistillConfig
from rdcache.distillation.evaluation import (
    outputs_of_teacher,
    similarity,
    tensors_of,
    weights_of,
)
from rdcache.distillation.evaluators import Evaluator, Predicted
from rdcache.distillation.hardware import Stopwatch
from rdcache.distillation.optimisation import create_optimiser, learning_rate
from rdcache.distillation.randomness import counted_seed
from rdcache.distillation.sampling import Picks, TrainingSamples
from rdcache.errors import TrainingError
from rdcache.methods import Method, StageName, Terms, TrainingProgress
from rdcache.methods.averaging import MovingAverage
from rdcache.models import Student, StudentOutput

Line = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A part of the training: the teacher branch alone, or the student with it."""

    name: StageName
    epochs: int


@dataclass
class Best:
    """The epoch that is best on validation so far, of equal ones the latest.

    Attributes:
        value: the metric that epochs are selected by.
        weights: of the student that counts.
        teacher: what the teacher branch depends on, where there is one: also the classifier that it
            shares with the student as it trains, which is not that of the student's average.
    """

    epoch: int
    value: float
    weights: dict[str, torch.Tensor]
    teacher: dict[str, torch.Tensor] | None = None


class Trainer:
    """A student and a method on their way, and what is needed to go on with them.

    Args:
        config: resolved.
        evaluator: judges students on the dataset.
        autocast: makes the context that forward passes run in.

    Attributes:
        stages: what there is to do.
        stage, epoch: what is next: number of a stage, and of an epoch in it.
        history: one line of numbers an epoch.
        metric: what epochs are selected by.
        best: what was best on validation.
        error: how the training diverged, if it did; there is no going on then.
        forward_student: the student, perhaps compiled.
        ways: how it is run on this machine: `taps`, `images` and `compiled`, each in a few words.
    """

    def __init__(
        self,
        config: DistillConfig,
        seed: int,
        student: Student,
        method: Method,
        source: BatchSource,
        training: TrainingSamples,
        evaluator: Evaluator,
        autocast: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.config, self.seed = config, seed
        self.student, self.method = student, method
        self.source, self.training = source, training
        self.evaluator, self.autocast = evaluator, autocast
        self.metric = evaluator.selected(config.select_metric)
        first = [Stage("teacher", method.teacher_epochs)] if method.teacher_epochs else []
        self.stages = [*first, Stage("student", config.epochs)]
        self.stage = self.epoch = 0
        self.history: list[Line] = []
        self.best: Best | None = None
        self.error: TrainingError | None = None
        self.optimiser: torch.optim.Optimizer | None = None
        self.trained: list[nn.Parameter] = []
        self.average = MovingAverage(student, config.ema) if config.ema else None
        merged = method.merged if config.ema else None
        self.merged_average = None if merged is None else MovingAverage(merged, config.ema)
        self._selected: Student | None = None
        self.forward_student: Callable[..., StudentOutput] = student
        self.ways: dict[str, str] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch."""
        return len(self.training) // self.config.batch_size

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
    def evaluated(self) -> Student:
        """The student that counts: its moving average where there is one, as the method deploys
        it; the selected one after `select`.
        """
        if self._selected is not None:
            return self._selected
        averaged: Any = self.student if self.average is None else self.average.averaged
        merged = None if self.merged_average is None else self.merged_average.averaged
        return self.method.deployed(averaged, merged)

    def select(self, best: Best) -> None:
        """Let an earlier epoch count from now on, the student's and the teacher branch's weights;
        training is over then.
        """
        selected = self.evaluated
        if best.teacher is not None:
            self.method.load_state_dict(best.teacher, strict=False)
        selected.load_state_dict(best.weights)
        self._selected = selected

    @property
    def done(self) -> bool:
        """Whether all stages are done."""
        return self.stage == len(self.stages)

    @property
    def now(self) -> Stage:
        """The stage that is next, or under way."""
        return self.stages[self.stage]

    @property
    def order_seed(self) -> int:
        """What the order of batches, their views and their jitter are counted from."""
        own = self.config.order_seed
        return self.seed if own is None else own

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs."""
        return {
            "student": self.student.state_dict(),
            "method": self.method.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "merged_average": (
                None if self.merged_average is None else self.merged_average.state_dict()
            ),
            "optimiser": None if self.optimiser is None else self.optimiser.state_dict(),
            "stage": self.stage,
            "epoch": self.epoch,
            "history": self.history,
            "best": None if self.best is None else vars(self.best),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.merged_average is not None:
            self.merged_average.load_state_dict(state["merged_average"])
        self.stage, self.epoch = state["stage"], state["epoch"]
        self.history = state["history"]
        self.best = None if state["best"] is None else Best(**state["best"])
        if state["optimiser"] is not None:
            self._begin(self.now).load_state_dict(state["optimiser"])

    def predict(self, split: str) -> Predicted:
        """What the student that counts says about a split."""
        samples, clean = self._samples(split), self.source.clean
        with self._watched():
            return self.evaluator.predict(self.evaluated, samples, clean, self.autocast())

    def predict_by_teacher(self, split: str) -> Predicted | None:
        """Classify what is cached of a split by the teacher branch, if there is one."""
        samples = self._samples(split)
        samples = samples[self.source.store.available(samples.tolist(), 0)]
        if not self.method.has_teacher_branch or not len(samples):
            return None
        taps = self.source.clean_taps(samples, self.method.branch_taps)
        with self._watched():
            outputs = outputs_of_teacher(self.method, taps)
            predicted: Predicted = self.evaluator.of_outputs(outputs, samples)
            return predicted

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Take note if training turns out to have diverged."""
        try:
            yield
        except TrainingError as error:
            self.error = error
            raise

    def _samples(self, split: str) -> np.ndarray:
        return np.flatnonzero(self.source.store.splits == split)

    def _begin(self, stage: Stage) -> torch.optim.Optimizer:
        self.method.begin_stage(stage.name)
        own = list(self.student.parameters()) if stage.name == "student" else []
        self.trained = list(dict.fromkeys([*own, *self.method.trainable_parameters(stage.name)]))
        self.optimiser = create_optimiser(self.trained, self.config.lr, self.config.weight_decay)
        return self.optimiser

    def picks(self) -> list[Picks]:
        """The batches of the next epoch."""
        key = (self.now.name, self.order_seed)
        return self.training.batches(
            self.config.batch_size, self.epoch, *key, views_each=self.method.views_each
        )

    def begin_epoch(self) -> None:
        """Make ready for the steps of the next epoch, which `end_epoch` ends."""
        if self.optimiser is None:
            self._begin(self.now)
        torch.manual_seed(counted_seed("dropout", self.now.name, self.seed, self.epoch))
        self.student.train()
        self.method.train()
        self._sums: Terms = {}
        self._own = Stopwatch(self.source.device)

    def step(self, batch: TrainingBatch, number: int) -> None:
        """Train on one batch of the epoch. A GPU is given its work and not waited for."""
        progress = TrainingProgress(self.epoch, self.now.epochs, number, self.steps_per_epoch)
        with self._own.running():
            for name, value in self._step(batch, progress).items():
                self._sums[name] = self._sums[name] + value if name in self._sums else value

    def end_epoch(self) -> Line:
        """Validate, and go on to the next epoch or stage.

        Returns:
            The epoch's line of numbers; `seconds` are those of its own steps and validation, not of
            the making of batches, which several trainers may share. (A GPU's clock also counts
            what it does for the next batch between two of a step's kernels.)

        Raises:
            TrainingError: a term of the loss is not finite.
        """
        stage = self.now
        line: Line = {"stage": stage.name, "epoch": self.epoch, "lr": self._rate()}
        totals = torch.stack([total.float() for total in self._sums.values()]).tolist()
        terms = dict(zip(self._sums, totals, strict=True))
        line |= {name: total / self.steps_per_epoch for name, total in terms.items()}
        with self._watched():
            self._require_finite(line)
        with self._own.running():
            line |= self._validate(stage)
        line |= self.method.numbers()
        line["seconds"] = round(self._own.seconds(), 3)
        self.epoch += 1
        self.history.append(line)
        if self.epoch == stage.epochs:
            self.stage, self.epoch, self.optimiser = self.stage + 1, 0, None
        return line

    def _step(self, batch: TrainingBatch, progress: TrainingProgress) -> Terms:
        assert self.optimiser is not None
        self._set_rate(self.now, progress)
        # Before the forward pass, which may have the memory of the last gradients then.
        self.optimiser.zero_grad(set_to_none=True)
        with self.autocast():
            if self.now.name == "teacher":
                terms = self.method.teacher_terms(batch.cached, progress)
            else:
                output = self.forward_student(batch.images, self.method.student_stages)
                terms = self.method(batch.cached, output, progress)
            loss = torch.stack([value.float() for value in terms.values()]).sum()
        loss.backward()
        if self.config.clip:
            nn.utils.clip_grad_norm_(self.trained, self.config.clip)
        self.optimiser.step()
        self.method.after_step()
        if self.average is not None and self.now.name == "student":
            self.average.update(self.student)
            if self.merged_average is not None and self.method.merged is not None:
                self.merged_average.update(self.method.merged)
        return {"loss": loss.detach(), **{name: term.detach() for name, term in terms.items()}}

    def _set_rate(self, stage: Stage, progress: TrainingProgress) -> None:
        assert self.optimiser is not None
        rate = learning_rate(
            self.config.schedule,
            progress.epoch * progress.steps + progress.step,
            stage.epochs * progress.steps,
            self.config.warmup_epochs * progress.steps,
            self.config.lr,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def _rate(self) -> float:
        assert self.optimiser is not None
        return float(self.optimiser.param_groups[0]["lr"])

    def _require_finite(self, line: Line) -> None:
        wrong = [name for name in self._sums if not math.isfinite(line[name])]
        if wrong:
            raise TrainingError(
                f"training diverged in epoch {self.epoch}: the loss is not a finite number.",
                terms=", ".join(name for name in wrong if name != "loss") or "loss",
                next=f"a smaller --lr than {self.config.lr:g}, or --clip 1",
            )

    def _validate(self, stage: Stage) -> Line:
        """Look at the validation split, and remember the epoch if it is the best so far."""
        done = self.epoch + 1
        due = done == stage.epochs or done % self.config.validate_every == 0
        if not due or not len(self._samples("val")):
            return {}
        teacher = self.predict_by_teacher("val")
        line: Line = {}
        if teacher is not None:
            numbers = self.evaluator.of_teacher(teacher)
            line = {f"val_teacher_{name}": value for name, value in numbers.items()}
        if stage.name == "teacher":
            return line
        samples, clean = self._samples("val"), self.source.clean
        with self._watched():
            numbers, student = self.evaluator.validate(
                self.evaluated, samples, clean, self.autocast()
            )
        line |= {f"val_{name}": value for name, value in numbers.items()}
        if teacher is not None and student is not None:
            line["val_cka"] = similarity(student, teacher)
        value = numbers[self.metric]
        if self.best is None or value >= self.best.value:
            branch = self.method.has_teacher_branch
            kept = tensors_of(self.method.teacher_state()) if branch else None
            self.best = Best(self.epoch, value, weights_of(self.evaluated), kept)
        return line
