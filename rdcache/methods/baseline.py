"""The baselines' common ground: the student's cross-entropy, the method's own terms, and, if it is
asked for, the logit distillation that much published code adds to every one of them.

    L = CE(z_s, y) + w·L_method + a·τ²·KL(p_t ‖ p_s)

Teacher logits come from a head (`teacher_logits.py`) that is frozen while the student learns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import nn

from rdcache.errors import UsageError
from rdcache.methods.base import (
    CachedBatch,
    Method,
    MethodConfig,
    MethodContext,
    StageName,
    Terms,
    TrainingProgress,
)
from rdcache.methods.teacher_logits import TeacherHead, TeacherHeadName, create_teacher_head
from rdcache.models import StudentOutput


class BaselineConfig(MethodConfig):
    """Options of every baseline. `weight` has each method's published value for its default."""

    weight: float = Field(default=1.0, ge=0, description="Weight of the method's own terms.")
    kd_weight: float = Field(
        default=0.0, ge=0, description="Weight of a logit KL beside them; 0 for none."
    )
    temperature: float = Field(default=4.0, gt=0, description="τ of logit terms.")
    teacher_head: TeacherHeadName = Field(
        default="auto",
        description="Where the teacher's logits come from: the store's own, a linear probe on its "
        "features, or a reprogrammer trained in a first stage (rd); auto: its own, else a probe.",
    )
    teacher_epochs: int | None = Field(
        default=None,
        ge=1,
        description="Epochs of the first stage of teacher_head=rd (default: as many as the "
        "student's).",
    )


class Baseline(Method):
    """Base of the methods that RD is compared with. A subclass computes `own_terms`.

    Attributes:
        needs_logits: whether its own terms read the teacher's logits.
        head: where those come from; None where nothing reads them.
    """

    Config: ClassVar[type[MethodConfig]] = BaselineConfig
    tuned: ClassVar[tuple[str, ...]] = ("weight",)
    needs_logits: ClassVar[bool] = False
    config: BaselineConfig

    def __init__(self, config: BaselineConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.head: TeacherHead | None = None
        if self.needs_logits or config.kd_weight > 0:
            _require_one_prediction(context)
            self.head = create_teacher_head(config.teacher_head, context, self.probed_tap(context))
            self._require_logits()
        self.taps = self.branch_taps
        self._teacher_epochs = config.teacher_epochs or context.epochs
        self._head_trains = False

    @classmethod
    def unread_options(cls, config: MethodConfig) -> frozenset[str]:
        """Those of the logits where no term reads any. `teacher_head` is none of them: it is given
        for all methods of a call at once.
        """
        assert isinstance(config, BaselineConfig)
        if not cls.needs_logits and config.kd_weight == 0:
            return frozenset({"temperature", "teacher_epochs"})
        return frozenset() if config.teacher_head == "rd" else frozenset({"teacher_epochs"})

    def probed_tap(self, context: MethodContext) -> str | None:
        """The tap that a linear probe must be fitted on; None for any."""
        return None

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the method's own terms, times `weight`."""
        raise NotImplementedError

    def ask_for(self, *taps: str) -> None:
        """List taps, beside those that are read already."""
        self.taps = tuple(dict.fromkeys((*self.taps, *taps)))

    def teacher_logits(self, batch: CachedBatch) -> torch.Tensor:
        """What the frozen teacher says: (B, C), without gradients."""
        assert self.head is not None
        with torch.no_grad():
            logits: torch.Tensor = self.head(batch.taps)[1]
        return logits

    def forward(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute `ce`, the method's own terms, and `kd` if it has a weight."""
        terms = {
            "ce": self.task_loss(student.logits, batch.target),
            **self.own_terms(batch, student, progress),
        }
        if self.config.kd_weight > 0:
            kl = self.task_loss.kl(
                student.logits, self.teacher_logits(batch), self.config.temperature
            )
            terms["kd"] = self.config.kd_weight * kl
        return terms

    @property
    def teacher_epochs(self) -> int:
        """Epochs of the first stage, where the head has to be trained."""
        return self._teacher_epochs if self.head is not None and self.head.trains else 0

    @property
    def has_teacher_branch(self) -> bool:
        """Whether there are logits of the teacher to be judged."""
        return self.head is not None

    @property
    def branch_taps(self) -> tuple[str, ...]:
        """The one that the head reads, whatever the method's own terms compare."""
        return () if self.head is None else (self.head.tap,)

    def teacher_state(self) -> dict[str, Any]:
        """The head's part of the state dict, without what the method adds to it."""
        return {name: it for name, it in self.state_dict().items() if name.startswith("head.")}

    def teacher_terms(self, batch: CachedBatch, progress: TrainingProgress) -> Terms:
        """Compute the head's cross-entropy."""
        assert self.head is not None
        return {"teacher_ce": self.task_loss(self.head(batch.taps)[1], batch.target)}

    def teacher_branch(self, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify by the teacher's head."""
        assert self.head is not None
        features, logits = self.head(taps)
        return features, logits

    def trainable_parameters(self, stage: StageName) -> Iterator[nn.Parameter]:
        """List the head in the first stage, and everything else in the second."""
        head = set() if self.head is None else set(self.head.parameters())
        for parameter in self.parameters():
            if (parameter in head) == (stage == "teacher"):
                yield parameter

    def begin_stage(self, stage: StageName) -> None:
        """Freeze the head, its batch-norm statistics included, while the student learns."""
        self._head_trains = stage == "teacher"
        if self.head is not None:
            self.head.requires_grad_(self._head_trains)
        self.train(self.training)

    def train(self, mode: bool = True) -> Baseline:
        """Switch the mode of everything but a frozen head."""
        super().train(mode)
        if self.head is not None:
            self.head.train(mode and self._head_trains)
        return self

    def _require_logits(self) -> None:
        """Refuse to go on without logits where something reads them."""
        if self.head is None:
            raise UsageError(
                "this method needs logits of the teacher, and teacher_head is none.",
                next="--teacher-head linear-probe, or rd",
            )


def _require_one_prediction(context: MethodContext) -> None:
    """Refuse to compare logits where every position has its own, of which teachers know nothing."""
    if context.task == "segmentation":
        raise UsageError(
            "there are no logits of the teacher for every position.",
            next="--set kd_weight=0, or --method drd",
        )
