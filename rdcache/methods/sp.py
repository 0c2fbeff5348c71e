"""Similarity-preserving distillation: samples that are alike to the teacher are to the student.

    L = CE(z_s, y) + w·‖Ĝ_s − Ĝ_t‖²_F / B²

with Ĝ the Gram matrix of a batch of maps, each flattened, its rows scaled to length 1. Tung & Mori,
"Similarity-Preserving Knowledge Distillation", ICCV 2019. Only samples are compared, so the two
maps need no connector and may have different channels and positions.

The Gram matrices are of the maps as they are, as published: the loss does not depend on the
teacher's scale, and the student's maps, which mostly end in a ReLU, have no negative similarities
that they could match those of standardised maps with. For teachers whose tokens are dominated by a
few channels, feature_norm=channel is there.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from rdcache import losses
from rdcache.methods.base import (
    EVERY_TASK,
    IMAGES_AND_VOLUMES,
    CachedBatch,
    MethodConfig,
    MethodContext,
    Terms,
    TrainingProgress,
    require_batch_size,
)
from rdcache.methods.feature_baselines import MapBaseline
from rdcache.methods.feature_options import MapConfig, RawFeatures
from rdcache.methods.registry import register
from rdcache.models import StudentOutput


class SPConfig(MapConfig):
    """Options of SP."""

    weight: float = Field(default=3000.0, ge=0, description="Weight of the Gram matrices' error.")
    feature_norm: RawFeatures = "none"


@register(
    "sp",
    title="Similarity-preserving distillation: equal Gram matrices of a batch",
    needs="one tap: a map, tokens or a vector",
    paper="Tung & Mori, ICCV",
    year=2019,
)
class SimilarityPreserving(MapBaseline):
    """Terms: `ce` and `sp`."""

    Config: ClassVar[type[MethodConfig]] = SPConfig
    tasks = EVERY_TASK
    dimensions = IMAGES_AND_VOLUMES
    config: SPConfig

    def __init__(self, config: SPConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        require_batch_size(context.batch_size, 2, "SP compares the samples of a batch")

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the squared error of the Gram matrices."""
        theirs = self.maps(batch.taps[self.pair.tap.name])
        return {"sp": self.config.weight * losses.sp(student.stages[self.pair.stage], theirs)}
