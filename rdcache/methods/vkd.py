"""VkD: the student's pooled features, turned but not bent, equal the teacher's.

    L = CE(z_s, y) + w·mean huber(P·f_s − LayerNorm(f_t)),   P semi-orthogonal

Miles et al., "V_kD: Improving Knowledge Distillation using Orthogonal Projections", ECCV 2024. An
orthogonal projection keeps the angles between student features, so that it cannot do the student's
work; LayerNorm, without weights, is the paper's normalisation for discriminative tasks. Weight 1.

The authors reparametrise all of P, which at 1024 × 1280 takes many times a small student's whole
step on a CPU. Ours is P = R·Q: Q a random semi-orthogonal matrix that stays, R a rotation that
trains, the Cayley transform of a skew matrix of rank 2r (option `rank`). It turns what lies in 2r
dimensions of the teacher's space, which a batch of pooled features hardly fills, and it is exactly
orthogonal.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from rdcache.methods.base import (
    CLASSIFICATION,
    IMAGES_AND_VOLUMES,
    CachedBatch,
    MethodConfig,
    MethodContext,
    Terms,
    TrainingProgress,
)
from rdcache.methods.pooled import PooledBaseline, PooledConfig
from rdcache.methods.registry import register
from rdcache.models import StudentOutput


class VkDConfig(PooledConfig):
    """Options of VkD."""

    rank: int = Field(
        default=64,
        ge=1,
        description="The projection's rotation trains within twice as many dimensions; half the "
        "teacher's channels are all of them.",
    )


class OrthogonalProjection(nn.Module):
    """x ↦ R·Q·x with Q (outputs × inputs) semi-orthogonal and fixed, R orthogonal and trained.

    R = (I − A/2)⁻¹(I + A/2) is the Cayley transform of A = UVᵀ − VUᵀ = XYᵀ with X = [U, V] and
    Y = [V, −U]; by Woodbury's formula (Wen & Yin, 2013) R = I + X(I − YᵀX/2)⁻¹Yᵀ, so that a system
    of 2·rank equations is all there is to solve. Computed in float32, also under autocast.
    """

    base: torch.Tensor

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__()
        rank = min(rank, max(outputs // 2, 1))
        self.register_buffer("base", nn.init.orthogonal_(torch.empty(outputs, inputs)))
        self.u = nn.Parameter(torch.randn(outputs, rank) / outputs**0.5)
        self.v = nn.Parameter(torch.randn(outputs, rank) / outputs**0.5)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Project (B, inputs) to (B, outputs); lengths and angles stay where outputs ≥ inputs."""
        with torch.autocast(features.device.type, enabled=False):
            rows = features.to(self.base.dtype) @ self.base.T
            x, y = torch.cat([self.u, self.v], dim=1), torch.cat([self.v, -self.u], dim=1)
            system = torch.eye(x.shape[1], dtype=x.dtype, device=x.device) - y.T @ x / 2
            # A system of this form always has a solution: nobody has to wait for a GPU to say so.
            solved, _ = torch.linalg.solve_ex(system, y.T @ rows.T)
            return rows + (x @ solved).T


@register(
    "vkd",
    title="VkD: an orthogonal projection of the student's features equals the teacher's",
    needs="one tap: a map, tokens or a vector",
    paper="Miles et al., ECCV",
    year=2024,
)
class OrthogonalProjectionDistillation(PooledBaseline):
    """Terms: `ce` and `vkd`."""

    Config: ClassVar[type[MethodConfig]] = VkDConfig
    tasks = CLASSIFICATION
    dimensions = IMAGES_AND_VOLUMES
    config: VkDConfig

    def __init__(self, config: VkDConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.projection = OrthogonalProjection(self.student_dim, self.teacher_dim, config.rank)

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the Huber loss of the projected features."""
        theirs = F.layer_norm(self.teacher_features(batch), (self.teacher_dim,))
        return {
            "vkd": self.config.weight * F.smooth_l1_loss(self.projection(student.features), theirs)
        }
