"""SDD: the student imitates the teacher's predictions for an image and for its parts.

    L = CE(z_s, y) + w·mean over cells of w_cell·τ²·KL(p_t,cell ‖ p_s,cell)

with the cells of `losses.scale_decoupled_kl`: the whole image, its quarters, its sixteenths. Wei et
al., "Scale Decoupled Distillation", CVPR 2024. With scale 1 alone it is `kd`, whose weight it has.

A linear classifier of the mean over positions classifies each position as well, and the mean of
what it says there is what it says of the image. The teacher's is a linear probe, fitted on the mean
of the map that is read; the student's is its own, on the map that it pools. Scales finer than
either map are left out: of a student whose last map is 2×2, as at 64 px, 1 and 2 remain, and at
32 px nothing but `kd`. Their code pools to 4×4 first and to the coarser scales from there; we pool
every scale from the map, so that the coarsest is the image's prediction exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import torch
from pydantic import Field

from rdcache import losses
from rdcache.errors import UsageError
from rdcache.methods.base import CachedBatch, MethodConfig, MethodContext, Terms, TrainingProgress
from rdcache.methods.baseline import BaselineConfig
from rdcache.methods.feature_options import LAST
from rdcache.methods.last_map import is_mean_of
from rdcache.methods.probed import ProbedBaseline
from rdcache.methods.registry import register
from rdcache.methods.teacher_logits import linear_logits
from rdcache.methods.teacher_maps import map_shape
from rdcache.models import StudentOutput
from rdcache.store.tap_axes import as_maps


class SDDConfig(BaselineConfig):
    """Options of SDD."""

    tap: str | None = Field(
        default=None, description="Map that is read (default: the teacher's default tap)."
    )
    scales: tuple[int, ...] = Field(
        default=(1, 2, 4), min_length=1, description="Cells a side, for each scale."
    )
    complementary_weight: float = Field(
        default=2.0,
        ge=0,
        description="Weight of cells whose teacher is right where that of the whole image is "
        "wrong, or the other way round; 1 for others.",
    )


@register(
    "sdd",
    title="Scale-decoupled distillation: predictions for the image and for its parts",
    needs="one tap: a map or tokens; a linear probe classifies it",
    paper="Wei et al., CVPR",
    year=2024,
)
class ScaleDecoupledDistillation(ProbedBaseline):
    """Terms: `ce` and `sdd`."""

    Config: ClassVar[type[MethodConfig]] = SDDConfig
    config: SDDConfig

    def __init__(self, config: SDDConfig, context: MethodContext) -> None:
        tap = context.tap(config.tap)
        _, *size = map_shape(tap)
        if min(size) < 2:
            raise UsageError(
                "sdd cuts maps into cells, and this tap has fewer than 2×2 positions.",
                tap=f"{tap.name} {_sides(tap.shape)}",
                next="--set tap=s4, or --method kd",
            )
        if min(config.scales) < 1:
            raise UsageError("a scale is at least 1.", scales=config.scales)
        channels = context.student_stages[LAST][0] if LAST in context.student_stages else None
        if channels != context.feature_dim:
            raise _not_pooled(channels, context.feature_dim)
        super().__init__(config, context)
        self.teacher_size = size
        self.student_stages = (LAST,)
        self.classifier = context.classifier
        self._pooling_checked = False

    def probed_tap(self, context: MethodContext) -> str:
        """The map that is read."""
        return context.tap(self.config.tap).name

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the divergence, averaged over cells."""
        config = self.config
        maps = student.stages[LAST]
        if not self._pooling_checked and not is_mean_of(student.features, maps):
            raise _not_pooled(maps.shape[1], student.features.shape[1])
        self._pooling_checked = True
        sides = (*self.teacher_size, *maps.shape[2:])
        scales = [scale for scale in config.scales if scale <= min(sides)]
        if not scales:
            raise UsageError(
                "every scale is finer than the student's last map or the teacher's.",
                scales=config.scales,
                student=_sides(maps.shape[2:]),
                teacher=_sides(self.teacher_size),
            )
        divergence = losses.scale_decoupled_kl(
            linear_logits(maps, self.classifier.weight, self.classifier.bias),
            self._teacher_maps(batch),
            batch.target,
            scales,
            config.temperature,
            config.complementary_weight,
        )
        return {"sdd": config.weight * divergence}

    @torch.no_grad()
    def _teacher_maps(self, batch: CachedBatch) -> torch.Tensor:
        maps = as_maps(batch.taps[self.head.tap].float(), self.head.kind)
        return linear_logits(maps, self.head.weight, self.head.bias)


def _sides(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape))


def _not_pooled(channels: int | None, width: int) -> UsageError:
    return UsageError(
        "sdd needs a student that classifies the mean of its last map, and this one does not.",
        last_map="none" if channels is None else f"{channels} channels",
        features=width,
        next="--student resnet18, shufflenet or mobilenet, or --method kd",
    )
