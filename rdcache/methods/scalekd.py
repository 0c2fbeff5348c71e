"""ScaleKD: the student's maps are asked, by cross-attention, for what the teacher has everywhere.

    L = CE(z_s, y) + Σ_l [w·D(A_l(m_s,l), m_t,l) + w_f·D(C·B_l(m_s,l), C·m_t,l)]

D is the squared difference of the directions of all positions (`losses.direction_error`); C takes
away what is constant over positions, which outweighs all other frequencies of a large teacher's
maps; A and B are two projectors a stage, in which learned queries, one for each position of the
teacher, attend to the positions of the student. Fan et al., "ScaleKD: Strong Vision Transformers
Could Be Excellent Teachers", NeurIPS 2024; weights 0.08 and 0.06 at s3 and s4.

What differs: their third part, which leads the projected maps of s3 through the teacher's own last
stage and asks with the result at s4, needs the live teacher and is not there: the maps of s3 are
compared at s3, and both stages have learned queries. Projectors are `width` channels wide with one
linear layer up to the teacher's at the end, where theirs have the teacher's own width (at 1280
channels some 50 million weights a stage), and the teacher's maps are averaged down to a grid of
7 × 7; a stage's error is then multiplied by the positions of its tap for each of the grid, so that
the weights mean what they do for whole maps. Where student or teacher has one position (a last
stage at 32 px, a vector) nothing varies over positions, and the second part is left out. Their KD
beside it is --set kd_weight=0.5 --set temperature=1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from rdcache.methods.stage_pairs import StagePair, stage_pairs
from rdcache.models import StudentOutput

PUBLISHED_STAGES = ("s3", "s4")
HEAD = 64  # channels of an attention head
SHARPNESS = 5.0  # factor on the attention's logits, beside 1/√HEAD


class ScaleKDConfig(StagesConfig):
    """Options of ScaleKD."""

    weight: float = Field(default=0.08, ge=0, description="Weight of the maps' directions.")
    frequency_weight: float = Field(
        default=0.06, ge=0, description="Weight of the directions without the constant part."
    )
    stages: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Stages that are compared (default: those of s3 and s4 that the store holds "
        "and the student has; where they have neither in common, of s1 and s2).",
    )
    width: int = Field(
        default=256, ge=HEAD, multiple_of=HEAD, description="Channels inside the projectors."
    )
    grid: int = Field(
        default=7, ge=1, description="Positions a side; larger maps of the teacher are averaged."
    )


class AttentionProjector(nn.Module):
    """Student maps (B, inputs, h, w) → maps (B, outputs, *sides) by learned queries.

    Args:
        inputs, outputs: channels of student and teacher.
        sides: height and width of the grid of queries.
        width: channels in between, a multiple of 64.
    """

    def __init__(self, inputs: int, outputs: int, sides: tuple[int, int], width: int) -> None:
        super().__init__()
        self.sides = sides
        self.enter = nn.Sequential(
            nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.places = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, width, *sides), std=0.02))
        self.queries = nn.Parameter(torch.randn(sides[0] * sides[1], width))
        self.ask = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.answer = nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width))
        self.think = nn.Sequential(
            nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width)
        )
        self.leave = nn.Linear(width, outputs)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Let each query attend to all positions of the student."""
        entered = self.enter(maps)
        # The student's side is not known before its first batch; its places are a stretched table.
        places = F.interpolate(self.places, entered.shape[2:], mode="bilinear")
        tokens = (entered + places).flatten(2).transpose(1, 2)
        asked = self.ask(self.queries).expand(len(maps), -1, -1)
        query, key, value = (
            _by_head(part) for part in (asked, self.key(tokens), self.value(tokens))
        )
        attended = F.scaled_dot_product_attention(query, key, value, scale=SHARPNESS / HEAD**0.5)
        answer = self.answer(attended.transpose(1, 2).flatten(2))
        projected: torch.Tensor = self.leave(answer + self.think(answer))
        return projected.transpose(1, 2).unflatten(2, self.sides)


def _by_head(tokens: torch.Tensor) -> torch.Tensor:
    """(B, positions, channels) → (B, heads, positions, 64)."""
    return tokens.unflatten(2, (-1, HEAD)).transpose(1, 2)


@register(
    "scalekd",
    title="ScaleKD: attention projectors, with and without the constant part",
    needs="maps, tokens or vectors of stages that the student has too, best s3 and s4",
    paper="Fan et al., NeurIPS",
    year=2024,
)
class ScaleKD(StagesBaseline):
    """Terms: `ce`, `spatial` and, where a stage has several positions, `frequency`."""

    Config: ClassVar[type[MethodConfig]] = ScaleKDConfig
    tuned = ("weight", "frequency_weight")
    tasks = EVERY_TASK
    config: ScaleKDConfig

    def __init__(self, config: ScaleKDConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        grids = [[min(side, config.grid) for side in pair.teacher_sides] for pair in self.pairs]
        self.sides = [(height, width) for height, width in grids]
        self.spatial, self.frequency = (
            nn.ModuleList(
                AttentionProjector(
                    pair.student_channels, pair.teacher_channels, sides, config.width
                )
                for pair, sides in zip(self.pairs, self.sides, strict=True)
            )
            for _ in range(2)
        )

    def choose_pairs(self, context: MethodContext) -> Sequence[StagePair]:
        """Pair the stages that are asked for, else s3 and s4, else what there is."""
        both = context.taps.keys() & context.student_stages.keys()
        published = tuple(stage for stage in PUBLISHED_STAGES if stage in both)
        return stage_pairs(self.config.stages or published or None, context)

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the error of directions, with and without the constant part, of all stages."""
        spatial, frequency = [], []
        for i, pair in enumerate(self.pairs):
            own = student.stages[pair.stage]
            theirs = F.adaptive_avg_pool2d(self.maps[i](batch.taps[pair.tap.name]), self.sides[i])
            # The error is a sum over positions; one of a grid stands for several of the tap.
            each = pair.teacher_positions / math.prod(self.sides[i])
            spatial.append(each * losses.direction_error(self.spatial[i](own), theirs))
            # From a single position all queries get one answer: nothing varies that could be asked.
            if math.prod(own.shape[2:]) > 1 and math.prod(self.sides[i]) > 1:
                mine = losses.without_dc(self.frequency[i](own).float())
                frequency.append(each * losses.direction_error(mine, losses.without_dc(theirs)))
        terms = {"spatial": self.config.weight * torch.stack(spatial).sum()}
        if frequency:
            terms["frequency"] = self.config.frequency_weight * torch.stack(frequency).sum()
        return terms
