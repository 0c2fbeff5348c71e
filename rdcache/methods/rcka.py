"""RCKA: the logits of a batch relate samples, and classes, as the teacher's do.

    L = CE(z_s, y) + w·(1 − CKA(Z_s, Z_t)) + w·(1 − CKA(Z_sᵀ, Z_tᵀ))

with Z (B, C) the logits of a batch: the first CKA compares how its samples relate, the second how
its classes do. Zhou et al., "Rethinking Centered Kernel Alignment in Knowledge Distillation", IJCAI
2024, their method for classification; weight 15 for both. CKA is `losses.cka`, with the centring of
the paper, which the authors' code leaves out.

Relations of 2 classes say nothing: two centred points are collinear, so that their CKA is 1 with a
gradient of 0. With 3 the unbiased estimator divides by C − 3 = 0; the biased one would be defined,
but `losses.cka` takes 4 rows at least, whatever the estimator. So below 4 classes the second term
is left out.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from rdcache import losses
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

Estimator = Annotated[
    Literal["biased", "unbiased"],
    Field(description="Estimator of HSIC within CKA; the paper's is biased."),
]


class RCKAConfig(BaselineConfig):
    """Options of RCKA."""

    weight: float = Field(default=15.0, ge=0, description="Weight of each of the two terms.")
    cka_estimator: Estimator = "biased"


@register(
    "rcka",
    title="RCKA: equal relations of samples and of classes in the logits",
    needs="logits of the teacher (--teacher-head)",
    paper="Zhou et al., IJCAI",
    year=2024,
)
class RelationAlignment(Baseline):
    """Terms: `ce`, `samples` and, from 4 classes on, `classes`."""

    Config: ClassVar[type[MethodConfig]] = RCKAConfig
    needs_logits = True
    dimensions = IMAGES_AND_VOLUMES
    config: RCKAConfig

    def __init__(self, config: RCKAConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        require_batch_size(
            context.batch_size, losses.MIN_SAMPLES, "CKA compares the samples of a batch"
        )
        self.relates_classes = context.num_classes >= losses.MIN_SAMPLES

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute what is missing to equal relations of samples, and of classes."""
        unbiased, weight = self.config.cka_estimator == "unbiased", self.config.weight
        mine, theirs = student.logits, self.teacher_logits(batch)
        terms = {"samples": weight * (1 - losses.cka(mine, theirs, unbiased))}
        if self.relates_classes:
            terms["classes"] = weight * (1 - losses.cka(mine.T, theirs.T, unbiased))
        return terms
