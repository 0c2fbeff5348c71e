"""Attention transfer: at every stage the student is active where its teacher is.

    L = CE(z_s, y) + w·Σ_l mean (Q_s/‖Q_s‖ − Q_t/‖Q_t‖)²,    Q = mean_c m_c²

Zagoruyko and Komodakis, "Paying More Attention to Attention", ICLR 2017; w = 1000 as in mdistiller.
The larger map is average-pooled to the smaller one's positions before its energy is taken. Teacher
maps are read as they are: an attention map is normalised as a whole, and channels that were
standardised to equal energy would say less about where the teacher looks.

Where a student's map has one position (a last stage at 32 px) its stage has nothing to say and
contributes 0; a teacher's tap of one position is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from rdcache import losses
from rdcache.errors import UsageError
from rdcache.methods.base import (
    EVERY_TASK,
    IMAGES_AND_VOLUMES,
    CachedBatch,
    MethodConfig,
    MethodContext,
    Terms,
    TrainingProgress,
)
from rdcache.methods.feature_baselines import StagesBaseline
from rdcache.methods.feature_options import FeatureNorm, StagesConfig
from rdcache.methods.registry import register
from rdcache.methods.stage_pairs import StagePair
from rdcache.methods.teacher_maps import with_equal_positions
from rdcache.models import StudentOutput


class AttentionTransferConfig(StagesConfig):
    """Options of attention transfer."""

    weight: float = Field(default=1000.0, ge=0, description="Weight of the sum over stages.")
    power: float = Field(
        default=2.0, ge=1, description="p of the channels' energy, the mean of |m|^p."
    )
    feature_norm: FeatureNorm = Field(
        default="none",
        description="Standardise each channel of a tap before its energy is taken; the published "
        "method does not.",
    )


@register(
    "at",
    title="Attention transfer: the student is active where the teacher is",
    needs="maps or tokens of stages that the student has too (s1 to s4)",
    paper="Zagoruyko and Komodakis, ICLR",
    year=2017,
)
class AttentionTransfer(StagesBaseline):
    """Terms: `ce` and `at`."""

    Config: ClassVar[type[MethodConfig]] = AttentionTransferConfig
    tasks = EVERY_TASK
    dimensions = IMAGES_AND_VOLUMES
    config: AttentionTransferConfig

    def choose_pairs(self, context: MethodContext) -> Sequence[StagePair]:
        """Pair the stages that are asked for, of several positions each."""
        pairs = super().choose_pairs(context)
        for pair in pairs:
            _require_positions(pair)
        return pairs

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the distances of the attention maps, summed over stages."""
        distances = []
        for pair, maps in zip(self.pairs, self.maps, strict=True):
            mine, theirs = with_equal_positions(
                student.stages[pair.stage], maps(batch.taps[pair.tap.name])
            )
            distances.append(losses.attention_transfer(mine, theirs, self.config.power))
        return {"at": self.config.weight * torch.stack(distances).sum()}


def _require_positions(pair: StagePair) -> None:
    """Refuse a tap that cannot say where its teacher looks.

    Raises:
        UsageError: it has one position.
    """
    if pair.teacher_positions == 1:
        raise UsageError(
            "attention transfer compares positions, and this tap has one.",
            tap=pair.tap.name,
            next="--set stages=[…] with taps that are maps or tokens",
        )
