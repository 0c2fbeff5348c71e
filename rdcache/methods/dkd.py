"""DKD: the KL of knowledge distillation in two parts that are weighed apart.

    L = CE(z_s, y) + r·w·(α·TCKD + β·NCKD)

TCKD compares how sure both are of the right class, NCKD what they make of the others; plain KL
ties the latter to the teacher's doubt, 1 − p_t,y. Zhao et al., "Decoupled Knowledge Distillation",
CVPR 2022. r rises from 0 to 1 in the first twelfth of training (20 of 240 epochs there).

With two classes there are no others: NCKD is 0 and left out, and what remains is α times plain KL.
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
)
from rdcache.methods.baseline import Baseline, BaselineConfig
from rdcache.methods.registry import register
from rdcache.models import StudentOutput


class DKDConfig(BaselineConfig):
    """Options of DKD; the defaults are those of CIFAR-100."""

    alpha: float = Field(default=1.0, ge=0, description="Weight of TCKD, the right class.")
    beta: float = Field(
        default=8.0, ge=0, description="Weight of NCKD, the other classes; 0.5 on ImageNet."
    )
    warmup: float = Field(
        default=1 / 12,
        ge=0,
        le=1,
        description="Share of training in which both rise to their weights.",
    )


@register(
    "dkd",
    title="Decoupled knowledge distillation: right class and other classes apart",
    needs="logits of the teacher (--teacher-head)",
    paper="Zhao et al., CVPR",
    year=2022,
)
class DecoupledDistillation(Baseline):
    """Terms: `ce`, `tckd` (α) and, with more than two classes, `nckd` (β)."""

    Config: ClassVar[type[MethodConfig]] = DKDConfig
    needs_logits = True
    dimensions = IMAGES_AND_VOLUMES
    config: DKDConfig

    def __init__(self, config: DKDConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.has_other_classes = context.num_classes > 2
        if not self.has_other_classes and config.alpha == 0:
            raise UsageError(
                "with two classes and alpha 0, nothing is left of dkd.",
                why="beyond the right class there is one class alone, and NCKD is 0",
                next="--set alpha=1, which is plain KL then",
            )

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute both parts, with their weights as they have risen so far."""
        config = self.config
        tckd, nckd = losses.decoupled_kl(
            student.logits, self.teacher_logits(batch), batch.target, config.temperature
        )
        risen = progress.risen(config.warmup)
        terms = {"tckd": risen * config.weight * config.alpha * tckd}
        if self.has_other_classes:
            terms["nckd"] = risen * config.weight * config.beta * nckd
        return terms
