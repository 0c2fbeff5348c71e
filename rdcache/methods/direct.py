"""Direct reprogramming: first a teacher branch, then a student that imitates it.

The paper's ablation baseline ("Di. Reprog"). Stage 1 trains reprogrammer and a classifier of their
own on the cached taps; stage 2 freezes both, and the student with its own classifier learns
CE(z_s, y) + β·τ²·KL(p_t ‖ p_s). Against RD: no shared classifier, no joint training, no CKA.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

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
)
from rdcache.methods.rd import teacher_branch
from rdcache.methods.registry import register
from rdcache.methods.reprogrammer import ReprogrammerConfig
from rdcache.models import StudentOutput


class DirectConfig(ReprogrammerConfig):
    """Options of direct reprogramming."""

    beta: float = Field(default=1.0, ge=0, description="Weight of the KL term.")
    temperature: float = Field(default=4.0, gt=0, description="τ of the KL term.")
    teacher_epochs: int | None = Field(
        default=None,
        ge=1,
        description="Epochs of the first stage (default: as many as the student's).",
    )


@register(
    "direct",
    title="Direct reprogramming: a frozen teacher branch, then logit distillation",
    needs="one tap: a map, tokens or a vector",
    paper="Zhou et al., MICCAI (ablation)",
    year=2024,
)
class DirectReprogramming(Method):
    """Terms: `teacher_ce` in the first stage; `ce` and `kl` (β) in the second."""

    Config: ClassVar[type[MethodConfig]] = DirectConfig
    tuned = ("beta",)
    tasks = CLASSIFICATION
    dimensions = IMAGES_AND_VOLUMES
    config: DirectConfig

    def __init__(self, config: DirectConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.branch = teacher_branch(config, context, share=False)
        self.tap = context.tap(config.tap).name
        self.taps = (self.tap,)
        self.frozen = False
        self._teacher_epochs = config.teacher_epochs or context.epochs

    @property
    def teacher_epochs(self) -> int:
        """Epochs of the first stage."""
        return self._teacher_epochs

    @property
    def has_teacher_branch(self) -> bool:
        """The reprogrammed teacher classifies."""
        return True

    def begin_stage(self, stage: StageName) -> None:
        """Freeze the teacher branch, its batch-norm statistics included, for the student."""
        self.frozen = stage == "student"
        self.branch.requires_grad_(not self.frozen)
        self.train(self.training)

    def train(self, mode: bool = True) -> DirectReprogramming:
        """Switch the mode of everything that is not frozen."""
        super().train(mode)
        self.branch.train(mode and not self.frozen)
        return self

    def trainable_parameters(self, stage: StageName) -> Iterator[nn.Parameter]:
        """List the teacher branch in the first stage, nothing in the second."""
        if stage == "teacher":
            yield from self.branch.parameters()

    def teacher_terms(self, batch: CachedBatch, progress: TrainingProgress) -> Terms:
        """Compute the teacher branch's cross-entropy."""
        _, logits = self.branch(batch.taps[self.tap])
        return {"teacher_ce": self.task_loss(logits, batch.target)}

    def forward(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the student's cross-entropy and its KL to the frozen branch."""
        with torch.no_grad():
            _, logits = self.branch(batch.taps[self.tap])
        kl = self.task_loss.kl(student.logits, logits, self.config.temperature)
        return {
            "ce": self.task_loss(student.logits, batch.target),
            "kl": self.config.beta * kl,
        }

    def teacher_branch(self, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify by the teacher branch."""
        features, logits = self.branch(taps[self.tap])
        return features, logits
