"""Probabilistic knowledge transfer: every sample has the neighbours that it has for the teacher.

    L = CE(z_s, y) + w·mean_ij p_t·log(p_t / p_s),   p_ij ∝ 1 + cos(f_i, f_j)

of pooled features. Passalis & Tefas, "Learning Deep Representations with Probabilistic Knowledge
Transfer", ECCV 2018; weight 30000 as in RepDistiller, as the mean is over B² small numbers.

The cosines are of the features as they are, as published; see `sp.py`.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

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
from rdcache.methods.feature_options import RawFeatures
from rdcache.methods.pooled import PooledBaseline, PooledConfig
from rdcache.methods.registry import register
from rdcache.models import StudentOutput


class PKTConfig(PooledConfig):
    """Options of PKT."""

    weight: float = Field(default=30000.0, ge=0, description="Weight of the divergence.")
    feature_norm: RawFeatures = "none"


@register(
    "pkt",
    title="Probabilistic knowledge transfer: equal distributions over neighbours",
    needs="one tap: a map, tokens or a vector",
    paper="Passalis & Tefas, ECCV",
    year=2018,
)
class ProbabilisticTransfer(PooledBaseline):
    """Terms: `ce` and `pkt`."""

    Config: ClassVar[type[MethodConfig]] = PKTConfig
    tasks = CLASSIFICATION
    dimensions = IMAGES_AND_VOLUMES
    config: PKTConfig

    def __init__(self, config: PKTConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        require_batch_size(context.batch_size, 2, "PKT compares the samples of a batch")

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the divergence of the distributions over neighbours."""
        divergence = losses.pkt(student.features, self.teacher_features(batch))
        return {"pkt": self.config.weight * divergence}
