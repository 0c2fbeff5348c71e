"""DIST: the student's predictions correlate with the teacher's, rather than equal them.

    L = CE(z_s, y) + w·τ²·(β·(1 − ρ between classes) + γ·(1 − ρ within classes))

with ρ Pearson's coefficient, once over the classes of each sample, once over the samples of each
class. A teacher that is much stronger than its student may stay so. Huang et al., "Knowledge
Distillation from A Stronger Teacher", NeurIPS 2022; β = γ = 2 and τ = 1 there, which are w = 2 and
β = γ = 1 here.

With two classes ρ over the classes of a sample is ±1 and without gradient: the first part is left
out, and what remains are correlations over the samples of the batch.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from rdcache import losses
from rdcache.errors import UsageError
from rdcache.methods.base import (
    IMAGES_AND_VOLUMES,
    CachedBatch,
    MethodConfig,
    MethodContext,
    Terms,
    TrainingProgress,
    require_batch_size,
)
from rdcache.methods.baseline import Baseline, BaselineConfig
from rdcache.methods.registry import register
from rdcache.models import StudentOutput


class DISTConfig(BaselineConfig):
    """Options of DIST."""

    weight: float = Field(default=2.0, ge=0, description="Weight of both correlations.")
    temperature: float = Field(
        default=1.0, gt=0, description="τ of logit terms; 4 with CIFAR and strong teachers."
    )
    beta: float = Field(default=1.0, ge=0, description="Weight of ρ between classes.")
    gamma: float = Field(default=1.0, ge=0, description="Weight of ρ within classes.")


@register(
    "dist",
    title="DIST: predictions that correlate, between classes and within each",
    needs="logits of the teacher (--teacher-head)",
    paper="Huang et al., NeurIPS",
    year=2022,
)
class CorrelationDistillation(Baseline):
    """Terms: `ce`, `inter` (β; only with more than two classes) and `intra` (γ)."""

    Config: ClassVar[type[MethodConfig]] = DISTConfig
    needs_logits = True
    dimensions = IMAGES_AND_VOLUMES
    config: DISTConfig

    def __init__(self, config: DISTConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.has_inter = context.num_classes > 2
        if not self.has_inter and config.gamma == 0:
            raise UsageError(
                "with two classes and gamma 0, nothing is left of dist.",
                why="two numbers are always perfectly correlated, so ρ between classes is ±1",
                next="--set gamma=1",
            )
        require_batch_size(context.batch_size, 3, "two samples are always perfectly correlated")

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute both correlations' distance from 1."""
        config = self.config
        logits = (student.logits, self.teacher_logits(batch), config.temperature)
        terms = {}
        if self.has_inter:
            terms["inter"] = config.weight * config.beta * losses.inter_class_relation(*logits)
        terms["intra"] = config.weight * config.gamma * losses.intra_class_relation(*logits)
        return terms
