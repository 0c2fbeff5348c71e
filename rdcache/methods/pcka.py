"""PCKA: patches of the student's maps relate to one another as those of the teacher's do.

    L = CE(z_s, y) + w·Σ_l (1 − mean_c CKA(P_c(r_l(m_s,l)), P_c(m_t,l)))

P_c cuts channel c of all maps of a batch into g × g patches: one row a patch, one column a pixel in
it. The CKA of each channel is averaged over channels. Zhou et al., "Rethinking Centered Kernel
Alignment in Knowledge Distillation", IJCAI 2024, who propose it for detection, where batches are
small and maps are large; patches=1, whole maps for rows, is what their code does to classify.
Weight 15, as there.

What differs: their patches are of 16 × 16 pixels, with those of all samples in one row; ours are as
many as fit in maps of 2 × 2. The 1×1 convolution r that leads to the teacher's channels trains
(theirs is drawn anew at every step), and CKA is `losses.cka`, with the centring of the paper. It
does not see a shift or a scale of a channel, so teacher maps are read as they are.
"""

from __future__ import annotations

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
    require_batch_size,
)
from rdcache.methods.feature_baselines import StagesBaseline
from rdcache.methods.feature_options import ScaleFreeStagesConfig
from rdcache.methods.rcka import Estimator
from rdcache.methods.registry import register
from rdcache.methods.teacher_maps import with_equal_positions
from rdcache.models import StudentOutput


class PCKAConfig(ScaleFreeStagesConfig):
    """Options of PCKA."""

    weight: float = Field(default=15.0, ge=0, description="Weight of each stage's alignment.")
    patches: int = Field(
        default=2, ge=1, description="Patches a side; fewer where a map has fewer pixels."
    )
    cka_estimator: Estimator = "biased"


@register(
    "pcka",
    title="PCKA: equal relations of the patches of a batch's maps",
    needs="maps, tokens or vectors of stages that the student has too (s1 to s4)",
    paper="Zhou et al., IJCAI",
    year=2024,
)
class PatchAlignment(StagesBaseline):
    """Terms: `ce` and `pcka`."""

    Config: ClassVar[type[MethodConfig]] = PCKAConfig
    tasks = EVERY_TASK
    config: PCKAConfig

    def __init__(self, config: PCKAConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        require_batch_size(
            context.batch_size, losses.MIN_SAMPLES, "CKA compares the samples of a batch"
        )
        # CKA sees neither scale nor shift of a channel: no bias, no norm.
        self.connectors = nn.ModuleList(
            nn.Conv2d(pair.student_channels, pair.teacher_channels, 1, bias=False)
            for pair in self.pairs
        )

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute what is missing to equal relations of patches, over all stages."""
        total = torch.zeros((), device=student.features.device)
        for pair, maps, connector in zip(self.pairs, self.maps, self.connectors, strict=True):
            mine, theirs = with_equal_positions(
                connector(student.stages[pair.stage]), maps(batch.taps[pair.tap.name])
            )
            alignment = losses.cka_each(
                patch_rows(mine, self.config.patches),
                patch_rows(theirs, self.config.patches),
                unbiased=self.config.cka_estimator == "unbiased",
            )
            total = total + 1 - alignment.mean()
        return {"pcka": self.config.weight * total}


def patch_rows(maps: torch.Tensor, patches: int) -> torch.Tensor:
    """Cut maps (B, C, H, W) into g × g patches: (C, B·g², pixels of a patch).

    g is `patches`, or a side of the map where that is shorter; maps that g does not divide are
    average-pooled to the next smaller size that it does.
    """
    count = min(patches, *maps.shape[2:])
    height, width = (side // count * count for side in maps.shape[2:])
    if maps.shape[2:] != (height, width):
        maps = F.adaptive_avg_pool2d(maps, (height, width))
    cut = maps.unflatten(3, (count, -1)).unflatten(2, (count, -1))  # B, C, g, h, g, w
    return cut.permute(1, 0, 2, 4, 3, 5).flatten(4).flatten(1, 3)
