"""What methods share that compare the student's pooled features with the teacher's."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from rdcache.methods.base import CachedBatch, MethodConfig, MethodContext
from rdcache.methods.baseline import Baseline
from rdcache.methods.feature_options import FeatureConfig
from rdcache.methods.layers import positions_of
from rdcache.methods.teacher_logits import pooled_tap
from rdcache.methods.teacher_maps import TeacherMaps, map_shape


class PooledConfig(FeatureConfig):
    """Options of methods that compare pooled features."""

    tap: str | None = Field(
        default=None,
        description="Tap that is read, averaged over positions (default: pooled where the store "
        "holds it, else the teacher's default tap).",
    )


class PooledBaseline(Baseline):
    """Base of methods that read one tap, averaged over its positions.

    Attributes:
        student_dim: width D of the student's features.
        teacher_dim: channels of the tap.
    """

    Config: ClassVar[type[MethodConfig]] = PooledConfig
    config: PooledConfig

    def __init__(self, config: PooledConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        tap = context.tap(config.tap or pooled_tap(context))
        self.pooled_tap = tap.name
        channels = map_shape(tap, context.dimensions)[0]
        self.student_dim, self.teacher_dim = context.feature_dim, channels
        self.ask_for(tap.name)
        statistics = context.statistics_for(config.feature_norm, tap.name)
        self.maps = TeacherMaps(tap, statistics, context.dimensions)

    def teacher_features(self, batch: CachedBatch) -> torch.Tensor:
        """Average the tap over its positions: float32 (B, channels)."""
        maps: torch.Tensor = self.maps(batch.taps[self.pooled_tap])
        return maps.mean(dim=positions_of(maps))
