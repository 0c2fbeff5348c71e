"""Reprogramming distillation: student and reprogrammed teacher learn one task together.

    L = CE(z_s, y) + α·CE(z_t, y) + β·τ²·KL(p_t ‖ p_s) + w·(1 − CKA(f_t, f_s))

with f_t = reprogrammer(tap), f_s the student's pooled features, and z = h(f) of one shared linear
classifier h. α, β decay to 0 during training. Where the paper is silent, there is an option;
`docs/method.md` says what we chose and why. The preset `rd-paper` is this equation to the letter;
in `rd`, the recommended one, the tap is a finer map than the teacher's last, and CKA compares f_s
with the teacher's own features: those that were reprogrammed soon tell no more about a training
image than its label. With `folds`, p_t too comes from branches that have not seen the image
(`crossfit.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from rdcache import losses
from rdcache.errors import UsageError
from rdcache.methods.averaging import MovingAverage
from rdcache.methods.base import (
    CLASSIFICATION,
    IMAGES_AND_VOLUMES,
    CachedBatch,
    Method,
    MethodConfig,
    MethodContext,
    StageName,
    Terms,
    TrainingProgress,
    require_batch_size,
)
from rdcache.methods.crossfit import CrossFittedBranches
from rdcache.methods.rd_options import Decay, Gradient, RDConfig
from rdcache.methods.registry import add_preset, register
from rdcache.methods.reprogrammer import Reprogrammer, ReprogrammerConfig
from rdcache.models import StudentOutput


class TeacherBranch(nn.Module):
    """Reprogrammer and classifier: taps in, features and logits out."""

    def __init__(self, reprogrammer: Reprogrammer, classifier: nn.Linear) -> None:
        super().__init__()
        self.reprogrammer = reprogrammer
        self.classifier = classifier

    def forward(self, tap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (B, D) and logits (B, C)."""
        features = self.reprogrammer(tap)
        return features, self.classifier(features)


@register(
    "rd",
    title="Reprogramming distillation, recommended preset",
    needs="one tap: a map, tokens or a vector",
    paper="Zhou et al., MICCAI",
    year=2024,
)
class ReprogrammingDistillation(Method):
    """Student and reprogrammed teacher learn one task under one shared classifier (eqs. 1–3).

    Terms: `ce`, `teacher_ce` (α), `kl` (β), `cka`.
    """

    Config: ClassVar[type[MethodConfig]] = RDConfig
    tuned = ("beta", "cka_weight")
    tasks = CLASSIFICATION
    dimensions = IMAGES_AND_VOLUMES
    config: RDConfig

    def __init__(self, config: RDConfig, context: MethodContext) -> None:
        if config.tap is None and config.finer_tap:
            config = config.model_copy(update={"tap": context.finer_map()})
        super().__init__(config, context)
        if config.cka_weight > 0:
            require_batch_size(
                context.batch_size,
                config.cka_min_batch,
                "CKA compares the samples of a batch (option cka_min_batch)",
            )
        if config.teacher_weights is not None:
            raise UsageError(
                "teacher_weights are for several teachers, and there is one.",
                given=config.teacher_weights,
            )
        self.branch = teacher_branch(config, context, share=config.share_classifier)
        self.tap = context.tap(config.tap).name
        self.taps = (self.tap,)
        self.crossfit: CrossFittedBranches | None = None
        if config.folds:
            self.crossfit = CrossFittedBranches(
                lambda: teacher_branch(config, context, share=False), context.folds(config.folds)
            )
        self._branch_trains = True
        self.average: MovingAverage | None = None
        if config.teacher_ema > 0:
            self.average = MovingAverage(self.branch, config.teacher_ema)

    @property
    def teacher_epochs(self) -> int:
        """Epochs of a first stage in which only the teacher branch trains."""
        return self.config.teacher_epochs

    @property
    def has_teacher_branch(self) -> bool:
        """The reprogrammed teacher classifies."""
        return True

    def forward(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the weighted terms of eq. (3)."""
        features, logits = self.branch(batch.taps[self.tap])
        return self.terms(batch, student, progress, logits, self.targets(batch, features, logits))

    def terms(
        self,
        batch: CachedBatch,
        student: StudentOutput,
        progress: TrainingProgress,
        logits: torch.Tensor,
        targets: tuple[torch.Tensor, torch.Tensor],
    ) -> Terms:
        """Compute the terms from the branch's logits (B, C) and what the student is to imitate."""
        config = self.config
        decay, cka_decay = decays(config, progress)
        terms = {
            "ce": self.task_loss(student.logits, batch.target),
            "teacher_ce": config.alpha * decay * self.task_loss(logits, batch.target),
        }
        features, logits = targets
        if config.beta > 0:
            kl = partial(self.task_loss.kl, temperature=config.temperature)
            terms["kl"] = config.beta * decay * directed(config, kl, student.logits, logits)
        if config.cka_weight > 0:
            weight = config.cka_weight * cka_decay
            terms["cka"] = weight * (1 - self._cka(student.features, features))
        return terms

    def teacher_terms(self, batch: CachedBatch, progress: TrainingProgress) -> Terms:
        """Compute the cross-entropy of what the first stage trains."""
        if self.crossfit is not None:
            tap = batch.taps[self.tap]
            loss = self.crossfit.loss(tap, batch.samples, batch.target, self.task_loss)
            # After the loss: older versions of PyTorch keep weights that were cast without gradient
            # for whatever comes next under the same autocast.
            self._watch(self.crossfit, batch, progress)
            return {"fold_ce": loss}
        _, logits = self.branch(batch.taps[self.tap])
        return {"teacher_ce": self.task_loss(logits, batch.target)}

    def _watch(
        self, crossfit: CrossFittedBranches, batch: CachedBatch, progress: TrainingProgress
    ) -> None:
        """Note what the branches of the folds say in the last epoch of their stage, and calibrate
        them at its end.
        """
        if not self.config.calibrate_folds or progress.epoch < progress.epochs - 1:
            return
        crossfit.note_unseen(batch.taps[self.tap], batch.samples, batch.target)
        if progress.step == progress.steps - 1:
            crossfit.calibrate(self.task_loss)

    def teacher_branch(self, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the features that CKA compares with, (B, ·), and the logits that KL has for its
        target; of the branches of the folds, their mean.
        """
        branch = self.branch if self.average is None else self.average.averaged
        features, logits = branch(taps[self.tap])
        if self.crossfit is not None:
            logits = self.crossfit.mean_logits(taps[self.tap])
        if self.config.cka_target == "teacher":
            features = self.branch.reprogrammer.own_features(taps[self.tap])
        return features, logits

    def trainable_parameters(self, stage: StageName) -> Iterator[nn.Parameter]:
        """List the branches of the folds in the first stage, else reprogrammer and classifier; the
        classifier is the student's own if shared.
        """
        if stage == "teacher" and self.crossfit is not None:
            yield from self.crossfit.parameters()
        else:
            yield from self.branch.parameters()

    def begin_stage(self, stage: StageName) -> None:
        """Note whether the branch trains: with folds, theirs alone do in the first stage."""
        self._branch_trains = stage == "student" or self.crossfit is None

    def after_step(self) -> None:
        """Move the averaged teacher branch."""
        if self.average is not None and self._branch_trains:
            self.average.update(self.branch)

    def targets(
        self, batch: CachedBatch, features: torch.Tensor, logits: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (B, ·) for CKA and logits (B, C) for KL; in the paper those of the branch."""
        tap = batch.taps[self.tap]
        if self.average is not None:
            with torch.no_grad():
                features, logits = self.average.averaged(tap)
        if self.crossfit is not None:
            logits = self.crossfit.logits(tap, batch.samples)
        if self.config.cka_target == "teacher":
            features = self.branch.reprogrammer.own_features(tap)
        return features, logits

    def _cka(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        student, teacher = with_gradients_to(self.config.cka_grad, student, teacher)
        return losses.cka(student, teacher, unbiased=self.config.cka_estimator == "unbiased")


def teacher_branch(
    config: ReprogrammerConfig, context: MethodContext, share: bool
) -> TeacherBranch:
    """Build a reprogrammer for the tap asked for, and its classifier or the student's own."""
    tap = context.tap(config.tap)
    statistics = context.statistics_for(config.feature_norm, tap.name)
    reprogrammer = Reprogrammer(tap, context.feature_dim, config, statistics, context.dimensions)
    own = nn.Linear(context.feature_dim, context.num_classes)
    return TeacherBranch(reprogrammer, context.classifier if share else own)


def directed(
    config: RDConfig,
    kl: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    student: torch.Tensor,
    teacher: torch.Tensor,
) -> torch.Tensor:
    """A divergence in the direction, and with gradients to the sides, that the options say."""
    student, teacher = with_gradients_to(config.kl_grad, student, teacher)
    if config.kl_direction == "t2s":
        return kl(student, teacher)
    if config.kl_direction == "s2t":
        return kl(teacher, student)
    return (kl(student, teacher) + kl(teacher, student)) / 2


def decays(config: RDConfig, progress: TrainingProgress) -> tuple[float, float]:
    """What is left of α and β, and of the weight of CKA."""
    share = progress.by_epoch if config.decay_unit == "epoch" else progress.by_step
    left = decayed(config.decay, share, config.decay_to)
    return left, decayed(config.cka_decay, share, 0.0)


def decayed(decay: Decay, share: float, floor: float) -> float:
    """A factor that falls from 1 to `floor` while `share` of training goes from 0 to 1."""
    if decay == "none":
        return 1.0
    left = 1 - share if decay == "linear" else (1 + math.cos(math.pi * share)) / 2
    return max(0.0, floor + (1 - floor) * left)


def with_gradients_to(
    side: Gradient, student: torch.Tensor, teacher: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Detach the side that a term must not move."""
    if side == "student":
        return student, teacher.detach()
    if side == "teacher":
        return student.detach(), teacher
    return student, teacher


add_preset(
    "rd-paper",
    of="rd",
    title="Reprogramming distillation as literally read from the paper",
    options={
        "cka_estimator": "biased",
        "cka_target": "reprogrammed",
        "folds": 0,
        "calibrate_folds": False,
        "kl_grad": "both",
        "cka_grad": "both",
        "feature_norm": "none",
        "finer_tap": False,
        "spatial": "map",
        "map_side": None,
        "block": "basic_block",
        "norm": "bn",
        "width": None,
        "n_blocks": 2,
        "dropout": 0.0,
        "share_classifier": True,
        "alpha": 1.0,
        "beta": 1.0,
        "cka_weight": 1.0,
        "cka_decay": "none",
        "kl_direction": "t2s",
        "temperature": 4.0,
        "decay": "linear",
        "decay_unit": "epoch",
        "decay_to": 0.0,
        "teacher_epochs": 0,
        "teacher_ema": 0.0,
        "teacher_weights": None,
    },
    training={
        "epochs": 240,
        "batch_size": 32,
        "lr": 5e-3,
        "weight_decay": 0.01,
        "label_smoothing": 0.0,
        "class_weights": "none",
        "schedule": "step",
        "warmup_epochs": 0,
        "clip": 0.0,
        "ema": 0.0,
        "student_weights": None,
    },
)
