"""Hint (FitNets): a map of the student, led through a connector, equals a map of the teacher.

    L = CE(z_s, y) + w·mean (r(m_s) − m_t)²

with r a 1×1 convolution and batch norm. Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR
2015. They train up to the hint first and the rest after; like all later comparisons we train both
terms together. The larger map is average-pooled to the smaller one's positions.
"""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field
from torch.nn import functional as F

from rdcache.methods.base import (
    EVERY_TASK,
    IMAGES_AND_VOLUMES,
    CachedBatch,
    MethodConfig,
    MethodContext,
    Terms,
    TrainingProgress,
)
from rdcache.methods.feature_baselines import MapBaseline
from rdcache.methods.feature_options import MapConfig
from rdcache.methods.registry import register
from rdcache.methods.stage_pairs import connector
from rdcache.methods.teacher_maps import with_equal_positions
from rdcache.models import StudentOutput


class HintConfig(MapConfig):
    """Options of Hint."""

    weight: float = Field(default=100.0, ge=0, description="Weight of the squared error.")


@register(
    "hint",
    title="Hint (FitNets): the student's last map regresses the teacher's",
    needs="one tap: a map, tokens or a vector",
    paper="Romero et al., ICLR",
    year=2015,
)
class Hint(MapBaseline):
    """Terms: `ce` and `hint`."""

    Config: ClassVar[type[MethodConfig]] = HintConfig
    tasks = EVERY_TASK
    dimensions = IMAGES_AND_VOLUMES
    config: HintConfig

    def __init__(self, config: HintConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.connector = connector(
            self.pair.student_channels, self.pair.teacher_channels, context.dimensions
        )

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the squared error of the regressed map."""
        regressed = self.connector(student.stages[self.pair.stage])
        mine, theirs = with_equal_positions(regressed, self.maps(batch.taps[self.pair.tap.name]))
        return {"hint": self.config.weight * F.mse_loss(mine.float(), theirs)}
