"""Masked generative distillation: from its map with channels struck out, the student generates the
teacher's.

    L = CE(z_s, y) + α·(C·H·W)_t·mean (G(mask∘a(m_s)) − m_t)²

Yang et al., "Masked Generative Distillation", ECCV 2022. a is a 1×1 convolution to the teacher's
channels (none where they are equally many), the mask strikes out each channel of each sample with
probability λ = 0.15, and G is two 3×3 convolutions with ReLU between. α = 7e-5 is that of the
authors' classification code.

There the loss is the sum over the teacher's C·H·W elements, and the maps of both are of one size.
Here the larger map is average-pooled to the smaller one's positions; the mean squared error over
these is multiplied by C·H·W of the teacher's map as the store holds it, so that α means the same
for students of every input size, and exactly what it does there where sizes agree. (A map that was
pooled before it was stored counts with the positions that are left.) G's inner layer has at most
`width` channels: two 3×3 convolutions of 1280 to 1280 channels have 29 million weights. The authors
clip gradients at norm 5, which is `--clip 5`.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from rdcache.methods.base import (
    EVERY_TASK,
    CachedBatch,
    MethodConfig,
    MethodContext,
    Terms,
    TrainingProgress,
)
from rdcache.methods.feature_baselines import MapBaseline
from rdcache.methods.feature_options import MapConfig
from rdcache.methods.registry import register
from rdcache.methods.teacher_maps import with_equal_positions
from rdcache.models import StudentOutput


class MaskedGenerativeConfig(MapConfig):
    """Options of masked generative distillation."""

    weight: float = Field(
        default=7e-5, ge=0, description="α: weight of the squared error summed over the map."
    )
    masked: float = Field(
        default=0.15, ge=0, lt=1, description="λ: share of the channels that are struck out."
    )
    width: int | None = Field(
        default=256,
        ge=1,
        description="Most channels inside the generator; null for as many as the teacher's map "
        "has, as published.",
    )


@register(
    "mgd",
    title="Masked generative distillation: part of the student's map generates the teacher's",
    needs="one tap: a map, tokens or a vector",
    paper="Yang et al., ECCV",
    year=2022,
)
class MaskedGenerativeDistillation(MapBaseline):
    """Terms: `ce` and `mgd`."""

    Config: ClassVar[type[MethodConfig]] = MaskedGenerativeConfig
    tasks = EVERY_TASK
    config: MaskedGenerativeConfig

    def __init__(self, config: MaskedGenerativeConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        pair = self.pair
        channels = pair.teacher_channels
        self.elements = channels * pair.teacher_positions
        self.align = (
            nn.Identity()
            if pair.student_channels == channels
            else nn.Conv2d(pair.student_channels, channels, 1)
        )
        width = min(config.width or channels, channels)
        self.generator = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, channels, 3, padding=1),
        )

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the squared error of the generated map."""
        theirs = self.maps(batch.taps[self.pair.tap.name])
        mine, theirs = with_equal_positions(self.align(student.stages[self.pair.stage]), theirs)
        draws = torch.rand((*mine.shape[:2], 1, 1), device=mine.device)
        generated = self.generator(mine * (draws >= self.config.masked))
        error = F.mse_loss(generated.float(), theirs)
        return {"mgd": self.config.weight * self.elements * error}
