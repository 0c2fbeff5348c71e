"""MLKD: predictions are aligned at three levels, samples, classes and batch, at five temperatures.

With two views of each sample, k a KL, c and b the alignments of `losses.alignment`,

    L = CE(z_s, y) + w·½·Σ_τ (m·k(first view) + k(second view) + n·c(first) + m·b(first))

CE is the mean over both views. Masks m and n keep the half of the samples, and of the classes, that
the teacher is least sure of: where its confidence in the first view, or the sum of its
probabilities for a class, is at most the median. Jin et al., "Multi-Level Logit Distillation", CVPR
2023; their first view is a weakly and their second a strongly augmented one, ours are two cached
views. Four things differ from their code: it sums over the views where we average, which halves
everything alike; it averages over the samples before it masks, so that its mask is a mere factor of
about ½; at two of five temperatures it takes the first view's logits for the second's; and c grows
with the squared number (B/C)² of samples that a batch has of a class, 0.4 in their batches of 64 of
100 classes and 256 in ours of 32 of 2, so we divide by it: unscaled it would drown all else.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field

from rdcache import losses
from rdcache.errors import UsageError
from rdcache.methods.base import (
    IMAGES_AND_VOLUMES,
    CachedBatch,
    MethodConfig,
    MethodContext,
    Terms,
    TrainingProgress,
)
from rdcache.methods.baseline import Baseline, BaselineConfig
from rdcache.methods.registry import register
from rdcache.models import StudentOutput

VIEWS = 2


class MLKDConfig(BaselineConfig):
    """Options of MLKD."""

    weight: float = Field(
        default=9.0, ge=0, description="Weight of all three levels (0.9, with 0.1 for CE, there)."
    )
    temperatures: tuple[float, ...] = Field(
        default=(2.0, 3.0, 4.0, 5.0, 6.0), min_length=1, description="τ that are summed over."
    )
    class_weight: float = Field(default=1.0, ge=0, description="Weight of the class level.")
    batch_weight: float = Field(default=1.0, ge=0, description="Weight of the batch level.")
    mask: Literal["unsure", "none"] = Field(
        default="unsure",
        description="Whether the first view counts where the teacher is least sure of it, or "
        "everywhere.",
    )


@register(
    "mlkd",
    title="Multi-level logit distillation: samples, classes and batch, at five temperatures",
    needs="logits of the teacher (--teacher-head); 2 views of a sample",
    paper="Jin et al., CVPR",
    year=2023,
)
class MultiLevelDistillation(Baseline):
    """Terms: `ce`, and one for each level: `instance`, `class` and `batch`."""

    Config: ClassVar[type[MethodConfig]] = MLKDConfig
    needs_logits = True
    views_each = VIEWS
    dimensions = IMAGES_AND_VOLUMES
    config: MLKDConfig

    def __init__(self, config: MLKDConfig, context: MethodContext) -> None:
        if context.views < VIEWS:
            raise UsageError(
                "mlkd compares two views of each sample, and trains on one.",
                views=context.views,
                next="rdcache extract … --views 4, or distill without --views 1",
            )
        if not all(temperature > 0 for temperature in config.temperatures):
            raise UsageError("temperatures are positive.", given=config.temperatures)
        super().__init__(config, context)

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the three levels, summed over temperatures."""
        config = self.config
        teacher = self.teacher_logits(batch)
        first_s, second_s = student.logits.chunk(VIEWS)
        first_t, second_t = teacher.chunk(VIEWS)
        samples, classes = self.masks(first_t)
        levels = []
        for temperature in config.temperatures:
            kl_first = (samples * losses.kl_each(first_s, first_t, temperature)).mean()
            levels.append(
                torch.stack(
                    (
                        kl_first + losses.kl(second_s, second_t, temperature),
                        losses.class_alignment(first_s, first_t, temperature, classes),
                        losses.batch_alignment(first_s, first_t, temperature, samples),
                    )
                )
            )
        of_instances, of_classes, of_batch = torch.stack(levels).sum(dim=0).unbind()
        half = config.weight / VIEWS
        of_a_class = len(first_t) / first_t.shape[1]
        return {
            "instance": half * of_instances,
            "class": half * config.class_weight / of_a_class**2 * of_classes,
            "batch": half * config.batch_weight * of_batch,
        }

    def masks(self, teacher_logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """1 for each sample (B,) and each class (C,) of one view that counts, 0 for others."""
        probabilities = teacher_logits.float().softmax(dim=1)
        confidence, mass = probabilities.amax(dim=1), probabilities.sum(dim=0)
        if self.config.mask == "none":
            return torch.ones_like(confidence), torch.ones_like(mass)
        unsure = confidence <= confidence.quantile(0.5)
        seldom = mass <= mass.quantile(0.5)
        return unsure.float(), seldom.float()
