"""SemCKD: every stage of the student learns from every stage of the teacher, and attention decides
how much from which.

    L = CE(z_s, y) + β·Σ_s Σ_t a_st·mean (r_st(m_s) − m_t)² / (B·S)
    a_s· = softmax_t ⟨q_s(M_s·M_sᵀ), k_t(M_t·M_tᵀ)⟩

Chen et al., "Cross-Layer Distillation with Semantic Calibration", AAAI 2021; β = 400 as in the
authors' code for CIFAR (50 for ImageNet). q and k are two linear layers with ReLU between and an
output of length 1; they read a sample's row of similarities with the batch, so they are made for
one batch size. r is 1×1, 3×3 and 1×1 convolutions with batch norm and ReLU between; the larger map
is average-pooled to the smaller one's positions before it.

The authors add the KL of the logits with weight 1; a foundation model has no logits of the task, so
here that is left to `kd_weight`, which is 0. What else differs: similarities are divided by the
number of elements of a map (they go through q and k, whose output has length 1 anyway). There r has
2·C_t channels inside: with a teacher of 1280 channels that is 59 million weights for each of 16
pairs. Here it has at most `width`, and maps are pooled to at most `grid` positions a side first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from rdcache import losses
from rdcache.errors import UsageError
from rdcache.methods.base import (
    EVERY_TASK,
    CachedBatch,
    MethodConfig,
    MethodContext,
    Terms,
    TrainingProgress,
    require_batch_size,
)
from rdcache.methods.baseline import Baseline
from rdcache.methods.feature_options import FeatureConfig
from rdcache.methods.registry import register
from rdcache.methods.stage_pairs import CANONICAL, StagePair, maps_of, stage_pair
from rdcache.methods.teacher_maps import with_equal_positions
from rdcache.models import StudentOutput

NARROWING = 4  # q and k give vectors of a quarter of the batch, at least 2: one is ±1


class SemanticCalibrationConfig(FeatureConfig):
    """Options of SemCKD."""

    weight: float = Field(default=400.0, ge=0, description="β: weight of the attended errors.")
    taps: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Taps of the teacher, as in [s3, s4] (default: those of s1 to s4 that the "
        "store holds, else the teacher's default tap).",
    )
    stages: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Stages of the student (default: those of s1 to s4 that it has).",
    )
    width: int | None = Field(
        default=64,
        ge=1,
        description="Most channels inside a regressor; null for twice the teacher's, as published.",
    )
    grid: int | None = Field(
        default=8,
        ge=1,
        description="Most positions a side at which maps are compared; null for as many as the "
        "smaller map has, as published.",
    )


@register(
    "semckd",
    title="SemCKD: all stages learn from all of the teacher's, weighed by attention",
    needs="maps, tokens or vectors, best of several stages (s1 to s4)",
    paper="Chen et al., AAAI",
    year=2021,
)
class SemanticCalibration(Baseline):
    """Terms: `ce` and `semckd`."""

    Config: ClassVar[type[MethodConfig]] = SemanticCalibrationConfig
    tasks = EVERY_TASK
    config: SemanticCalibrationConfig

    def __init__(self, config: SemanticCalibrationConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        require_batch_size(
            context.batch_size, 2 * NARROWING, "attention compares the samples of a batch"
        )
        self.pairs = _all_pairs(config, context)
        teachers, students = self.pairs[0], [row[0] for row in self.pairs]
        self.ask_for(*(pair.tap.name for pair in teachers))
        self.student_stages = tuple(pair.stage for pair in students)
        self.maps = nn.ModuleList(maps_of(pair, config.feature_norm, context) for pair in teachers)
        self.keys = nn.ModuleList(_embedding(context.batch_size) for _ in teachers)
        self.queries = nn.ModuleList(_embedding(context.batch_size) for _ in students)
        self.regressors = nn.ModuleList(
            nn.ModuleList(_regressor(pair, config.width) for pair in row) for row in self.pairs
        )

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the errors of all pairs of stages, weighed by attention."""
        theirs = [
            maps(batch.taps[pair.tap.name])
            for maps, pair in zip(self.maps, self.pairs[0], strict=True)
        ]
        mine = [student.stages[stage] for stage in self.student_stages]
        attention = self.attention(mine, theirs)
        coarse = [self._pooled(maps) for maps in theirs]
        regressed, targets = [], []
        for maps, regressors in zip(mine, self.regressors, strict=True):
            assert isinstance(regressors, nn.ModuleList)
            aligned = [with_equal_positions(self._pooled(maps), target) for target in coarse]
            regressed.append([r(m) for r, (m, _) in zip(regressors, aligned, strict=True)])
            targets.append([target for _, target in aligned])
        error = losses.semantic_calibration(attention, regressed, targets)
        return {"semckd": self.config.weight * error}

    def attention(
        self, students: Sequence[torch.Tensor], teachers: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        """How much each sample's student stage learns from each teacher stage: (B, S, T)."""
        queries = _embedded(self.queries, students)
        keys = _embedded(self.keys, teachers)
        return (queries @ keys.transpose(1, 2)).softmax(dim=2)

    def _pooled(self, maps: torch.Tensor) -> torch.Tensor:
        grid = self.config.grid
        if grid is None or max(maps.shape[2:]) <= grid:
            return maps
        return F.adaptive_avg_pool2d(maps, (min(maps.shape[2], grid), min(maps.shape[3], grid)))


def _all_pairs(
    config: SemanticCalibrationConfig, context: MethodContext
) -> tuple[tuple[StagePair, ...], ...]:
    """Every stage of the student with every tap of the teacher: rows are stages.

    Raises:
        UsageError: the student lacks a stage that is asked for, or has none of s1 to s4.
        UnknownNameError: the store lacks a tap.
    """
    taps = config.taps or tuple(name for name in CANONICAL if name in context.taps)
    stages = config.stages or tuple(name for name in CANONICAL if name in context.student_stages)
    if not stages:
        raise UsageError(
            "the student has none of the stages s1 to s4.",
            has=", ".join(context.student_stages),
            next="--set stages=[…]",
        )
    return tuple(
        tuple(stage_pair(tap, stage, context) for tap in taps or (context.default_tap,))
        for stage in stages
    )


def _embedding(batch_size: int) -> nn.Sequential:
    """From a row of similarities with the batch to a short vector."""
    narrow = batch_size // NARROWING
    return nn.Sequential(
        nn.Linear(batch_size, 2 * narrow), nn.ReLU(), nn.Linear(2 * narrow, narrow)
    )


def _embedded(embeddings: nn.ModuleList, maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Vectors of length 1, (B, stages, ·), in float32 also under autocast."""
    with torch.autocast(maps[0].device.type, enabled=False):
        rows = [
            embedding(losses.similarity_rows(stage))
            for embedding, stage in zip(embeddings, maps, strict=True)
        ]
        return F.normalize(torch.stack(rows, dim=1), dim=2)


def _regressor(pair: StagePair, width: int | None) -> nn.Sequential:
    """From the channels of the student's map to those of the teacher's."""
    inner = 2 * pair.teacher_channels
    if width is not None:
        inner = min(inner, width)
    return nn.Sequential(
        nn.Conv2d(pair.student_channels, inner, 1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, inner, 3, padding=1, bias=False),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        nn.Conv2d(inner, pair.teacher_channels, 1, bias=False),
    )
