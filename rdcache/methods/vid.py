"""Variational information distillation: the student's maps predict the teacher's, with a variance
for every channel.

    L = CE(z_s, y) + w·Σ_l mean ½·[(μ_l(m_s) − m_t)²/σ²_l + log σ²_l],    σ² = softplus(ρ) + 1e-5

Ahn et al., "Variational Information Distillation for Knowledge Transfer", CVPR 2019. μ is three 1×1
convolutions with ReLU between, σ² is learnt for each channel and starts at 5, as in the authors'
code; w = 1. The larger map is average-pooled to the smaller one's positions.

There the inner layers of μ are as wide as the teacher's map; on maps of 1000 and more channels that
costs many times the student's own step, so they have at most `width` channels here. Teacher maps
are standardised by default: the variances adapt to any scale, but they start near that one.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from rdcache import losses
from rdcache.methods.base import (
    EVERY_TASK,
    CachedBatch,
    MethodConfig,
    MethodContext,
    Terms,
    TrainingProgress,
)
from rdcache.methods.feature_baselines import StagesBaseline
from rdcache.methods.feature_options import StagesConfig
from rdcache.methods.registry import register
from rdcache.methods.stage_pairs import StagePair
from rdcache.methods.teacher_maps import with_equal_positions
from rdcache.models import StudentOutput

LEAST_VARIANCE = 1e-5


class VariationalConfig(StagesConfig):
    """Options of variational information distillation."""

    weight: float = Field(default=1.0, ge=0, description="Weight of the sum over stages.")
    variance: float = Field(
        default=5.0, gt=LEAST_VARIANCE, description="Variance of every channel at the start."
    )
    width: int | None = Field(
        default=256,
        ge=1,
        description="Most channels of the inner layers that predict a map; null for as many as "
        "the map has, as published.",
    )


class Predictor(nn.Module):
    """The distribution of a teacher's map, given a student's: means, and a variance a channel.

    Args:
        pair: what it leads from and to.
        width: channels of its inner layers.
        variance: at the start.
    """

    def __init__(self, pair: StagePair, width: int, variance: float) -> None:
        super().__init__()
        self.mean = nn.Sequential(
            nn.Conv2d(pair.student_channels, width, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(width, width, 1, bias=False),
            nn.ReLU(),
            nn.Conv2d(width, pair.teacher_channels, 1, bias=False),
        )
        above = variance - LEAST_VARIANCE
        start = above + math.log(-math.expm1(-above))  # the inverse of softplus
        self.rho = nn.Parameter(torch.full((pair.teacher_channels,), start))

    @property
    def variance(self) -> torch.Tensor:
        """σ², (C, 1, 1)."""
        return (F.softplus(self.rho) + LEAST_VARIANCE)[:, None, None]


@register(
    "vid",
    title="Variational information distillation: the student's maps predict the teacher's",
    needs="maps, tokens or vectors of stages that the student has too (s1 to s4)",
    paper="Ahn et al., CVPR",
    year=2019,
)
class VariationalInformationDistillation(StagesBaseline):
    """Terms: `ce` and `vid`, which may be negative."""

    Config: ClassVar[type[MethodConfig]] = VariationalConfig
    tasks = EVERY_TASK
    config: VariationalConfig

    def __init__(self, config: VariationalConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.predictors = nn.ModuleList(
            Predictor(
                pair,
                min(config.width or pair.teacher_channels, pair.teacher_channels),
                config.variance,
            )
            for pair in self.pairs
        )

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute how unlikely the teacher's maps are, summed over stages."""
        unlikely = []
        for pair, maps, predictor in zip(self.pairs, self.maps, self.predictors, strict=True):
            assert isinstance(predictor, Predictor)
            mine, theirs = with_equal_positions(
                student.stages[pair.stage], maps(batch.taps[pair.tap.name])
            )
            unlikely.append(losses.gaussian_nll(predictor.mean(mine), predictor.variance, theirs))
        return {"vid": self.config.weight * torch.stack(unlikely).sum()}
