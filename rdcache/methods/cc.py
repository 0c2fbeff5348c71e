"""Correlation congruence: what student and teacher disagree about differs from sample to sample.

    L = CE(z_s, y) + w·mean_i Σ_k |δ_ik|·|δ_(i+1)k|,   δ = E_s(f_s) − E_t(f_t)

with linear embeddings E of the pooled features. Peng et al., "Correlation Congruence for Knowledge
Distillation", ICCV 2019, in the form that RepDistiller and the code after it use (they have it
from the authors; the paper's own formula compares Gaussian kernels): 128 dimensions, weight 0.02.
As there, the teacher's embedding trains too, so that the two could also agree by shrinking; nothing
but the small weight is against that.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch import nn

from rdcache import losses
from rdcache.methods.base import (
    CLASSIFICATION,
    IMAGES_AND_VOLUMES,
    CachedBatch,
    MethodConfig,
    MethodContext,
    Terms,
    TrainingProgress,
    require_batch_size,
)
from rdcache.methods.pooled import PooledBaseline, PooledConfig
from rdcache.methods.registry import register
from rdcache.models import StudentOutput


class CCConfig(PooledConfig):
    """Options of CC."""

    weight: float = Field(default=0.02, ge=0, description="Weight of the congruence term.")
    embedding: int = Field(default=128, ge=1, description="Dimensions of both embeddings.")


@register(
    "cc",
    title="Correlation congruence between neighbouring samples of a batch",
    needs="one tap: a map, tokens or a vector",
    paper="Peng et al., ICCV",
    year=2019,
)
class CorrelationCongruence(PooledBaseline):
    """Terms: `ce` and `cc`."""

    Config: ClassVar[type[MethodConfig]] = CCConfig
    tasks = CLASSIFICATION
    dimensions = IMAGES_AND_VOLUMES
    config: CCConfig

    def __init__(self, config: CCConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        require_batch_size(context.batch_size, 2, "CC compares neighbouring samples of a batch")
        self.student_embedding = nn.Linear(self.student_dim, config.embedding)
        self.teacher_embedding = nn.Linear(self.teacher_dim, config.embedding)

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the congruence of the embeddings' differences."""
        mine = self.student_embedding(student.features)
        theirs = self.teacher_embedding(self.teacher_features(batch))
        return {"cc": self.config.weight * losses.cc(mine, theirs)}
