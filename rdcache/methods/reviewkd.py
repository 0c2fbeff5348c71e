"""ReviewKD: every level of the student is taught with what its deeper levels have understood.

    L = CE(z_s, y) + w·ramp·Σ_l HCL(m̃_l, m_t,l),   m̃_l, r_l = ABF_l(m_s,l, r_(l+1))

from the pooled features up to the finest stage. An attention-based fusion (ABF) mixes a level of
the student with the residue r of the deeper ones, weighing both at every position, and gives a map
of the teacher's channels; the hierarchical context loss compares it at several resolutions. Chen et
al., "Distilling Knowledge via Knowledge Review", CVPR 2021. Weight 1, and a linear warm-up over 20
of 240 epochs, as in mdistiller.

What differs: the teacher's maps are those of the cache, after their activation and standardised by
channel, where the authors take them before the last ReLU; its pooled features are the mean of the
deepest map; levels are compared at the coarser grid of the two. The fusion's width is 256 at most,
and theirs 512.
"""

from __future__ import annotations

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
from rdcache.methods.stage_pairs import StagePair, connector
from rdcache.models import StudentOutput


class ReviewKDConfig(StagesConfig):
    """Options of ReviewKD."""

    weight: float = Field(default=1.0, ge=0, description="Weight of the sum over levels.")
    warmup: float = Field(
        default=1 / 12, ge=0, le=1, description="Share of training over which the weight grows."
    )
    width: int = Field(
        default=256,
        ge=1,
        description="Channels inside the fusions, at most; never more than the student's features "
        "have.",
    )


class Fusion(nn.Module):
    """ABF: mixes a map of the student with the residue of the deeper levels.

    Args:
        inputs: channels of the student's map.
        width: channels of the residue.
        outputs: channels of the teacher's map.
        fuses: whether there is a deeper level.
    """

    def __init__(self, inputs: int, width: int, outputs: int, fuses: bool) -> None:
        super().__init__()
        self.enter = connector(inputs, width)
        self.attention = nn.Conv2d(2 * width, 2, 1) if fuses else None
        self.leave = nn.Sequential(
            nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs)
        )
        for layers in (self.enter, self.leave):
            nn.init.kaiming_uniform_(layers[0].weight, a=1)  # type: ignore[arg-type]

    def forward(
        self, maps: torch.Tensor, deeper: torch.Tensor | None, sides: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a map (B, outputs, *sides), and the residue for the next finer level.

        Args:
            maps: (B, inputs, H, W) of the student.
            deeper: (B, width, h, w), repeated to H × W; None where there is none.
            sides: height and width to compare at, H × W at most.
        """
        residue = self.enter(maps)
        if self.attention is not None and deeper is not None:
            deeper = F.interpolate(deeper, residue.shape[2:], mode="nearest")
            shares = self.attention(torch.cat([residue, deeper], dim=1)).sigmoid()
            residue = shares[:, :1] * residue + shares[:, 1:] * deeper
        if residue.shape[2:] != sides:
            residue = F.adaptive_avg_pool2d(residue, sides)
        return self.leave(residue), residue


@register(
    "reviewkd",
    title="ReviewKD: fused levels of the student equal the teacher's stages",
    needs="maps, tokens or vectors of stages that the student has too (s1 to s4)",
    paper="Chen et al., CVPR",
    year=2021,
)
class KnowledgeReview(StagesBaseline):
    """Terms: `ce` and `review`."""

    Config: ClassVar[type[MethodConfig]] = ReviewKDConfig
    tasks = EVERY_TASK
    config: ReviewKDConfig

    def __init__(self, config: ReviewKDConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        width = min(config.width, context.feature_dim)
        levels = [(pair.student_channels, pair.teacher_channels) for pair in self.pairs]
        levels.append((context.feature_dim, self.pairs[-1].teacher_channels))
        self.fusions = nn.ModuleList(
            Fusion(mine, width, theirs, fuses=level < len(self.pairs))
            for level, (mine, theirs) in enumerate(levels)
        )

    def choose_pairs(self, context: MethodContext) -> Sequence[StagePair]:
        """Pair the stages that are asked for, the finest first."""
        strides = {name: stride for name, (_, stride) in context.student_stages.items()}
        return sorted(super().choose_pairs(context), key=lambda pair: strides[pair.stage])

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the loss of all levels, the deepest first."""
        theirs = [
            maps(batch.taps[pair.tap.name])
            for maps, pair in zip(self.maps, self.pairs, strict=True)
        ]
        theirs.append(theirs[-1].mean(dim=(2, 3), keepdim=True))
        mine = [student.stages[pair.stage] for pair in self.pairs]
        mine.append(student.features[:, :, None, None])
        total = torch.zeros((), device=student.features.device)
        residue = None
        for fusion, own, teacher in reversed(list(zip(self.fusions, mine, theirs, strict=True))):
            sides = (min(own.shape[2], teacher.shape[2]), min(own.shape[3], teacher.shape[3]))
            reviewed, residue = fusion(own, residue, sides)
            if teacher.shape[2:] != sides:
                teacher = F.adaptive_avg_pool2d(teacher, sides)
            total = total + losses.hcl(reviewed, teacher)
        return {"review": self.config.weight * progress.risen(self.config.warmup) * total}
