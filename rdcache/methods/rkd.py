"""Relational knowledge distillation: distances and angles between samples are the teacher's.

    L = CE(z_s, y) + w_d·mean huber(d_s, d_t) + w_a·mean huber(a_s, a_t)

d: distances of all pairs of a batch over their mean; a: cosines of the angles of all triples; both
of pooled features. Park et al., "Relational Knowledge Distillation", CVPR 2019; weights 25 and 50.
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
from rdcache.methods.pooled import PooledBaseline, PooledConfig
from rdcache.methods.registry import register
from rdcache.models import StudentOutput


class RKDConfig(PooledConfig):
    """Options of RKD."""

    weight: float = Field(default=25.0, ge=0, description="Weight of the distances' error.")
    angle_weight: float = Field(default=50.0, ge=0, description="Weight of the angles' error.")


@register(
    "rkd",
    title="Relational distillation: equal distances and angles between samples",
    needs="one tap: a map, tokens or a vector",
    paper="Park et al., CVPR",
    year=2019,
)
class RelationalDistillation(PooledBaseline):
    """Terms: `ce`, `distance` and `angle`."""

    Config: ClassVar[type[MethodConfig]] = RKDConfig
    tuned = ("weight", "angle_weight")
    tasks = CLASSIFICATION
    dimensions = IMAGES_AND_VOLUMES
    config: RKDConfig

    def __init__(self, config: RKDConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        require_batch_size(context.batch_size, 3, "RKD compares angles between three samples")

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the error of the distances and that of the angles."""
        mine, theirs = student.features, self.teacher_features(batch)
        return {
            "distance": self.config.weight * losses.rkd_distance(mine, theirs),
            "angle": self.config.angle_weight * losses.rkd_angle(mine, theirs),
        }
