"""Knowledge distillation on standardised logits: the student need not be as sure as its teacher.

    L = CE(z_s, y) + w·τ²·KL(softmax(ẑ_t/τ) ‖ softmax(ẑ_s/τ)),   ẑ = (z − mean z) / std z

Sun et al., "Logit Standardization in Knowledge Distillation", CVPR 2024, with their τ = 2 and
w = 9.

It needs three classes. Of two, standardising leaves the sign: ẑ is ±0.7 whatever a network says,
and the term has no gradient. So it refuses, rather than be `kd` by another name.
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


class StandardisedKDConfig(BaselineConfig):
    """Options of knowledge distillation on standardised logits."""

    weight: float = Field(default=9.0, ge=0, description="Weight of the KL.")
    temperature: float = Field(
        default=2.0, gt=0, description="τ of logit terms, in standard deviations of the logits."
    )


@register(
    "kd-standardised",
    title="Knowledge distillation on logits without their mean and spread",
    needs="logits of the teacher (--teacher-head); at least 3 classes",
    paper="Sun et al., CVPR",
    year=2024,
)
class StandardisedDistillation(Baseline):
    """Terms: `ce` and `kl`."""

    Config: ClassVar[type[MethodConfig]] = StandardisedKDConfig
    needs_logits = True
    dimensions = IMAGES_AND_VOLUMES
    config: StandardisedKDConfig

    def __init__(self, config: StandardisedKDConfig, context: MethodContext) -> None:
        if context.num_classes < 3:
            raise UsageError(
                "logits of two classes cannot be standardised and still teach anything.",
                why="their standardised values are ±0.7 whatever the network says: no gradient",
                next="--method kd",
            )
        super().__init__(config, context)

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the divergence from the teacher's standardised prediction."""
        kl = losses.kl(
            losses.standardised_logits(student.logits),
            losses.standardised_logits(self.teacher_logits(batch)),
            self.config.temperature,
        )
        return {"kl": self.config.weight * kl}
