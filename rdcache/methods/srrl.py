"""SRRL: what the student sees, led through a connector, suits the teacher's own classifier.

    L = CE(z_s, y) + w·(mean (g − f_t)² + mean (h_t(g) − z_t)²),   g = mean over positions of r(m_s)

with f_t the teacher's features, h_t the linear layer that gives its logits z_t = h_t(f_t), and r a
1×1 convolution and batch norm. Yang et al., "Knowledge Distillation via Softmax Regression
Representation Learning", ICLR 2021. They end r in a ReLU, as their teachers do; ours may be
negative, and standardised they are, so r ends linear unless `activation=relu` asks for theirs.

A foundation model has no classifier of these classes: h_t is a linear probe on f_t. Where features
are standardised, it is rewritten for these, and its logits stay what they are.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import nn
from torch.nn import functional as F

from rdcache.methods.base import CachedBatch, MethodConfig, MethodContext, Terms, TrainingProgress
from rdcache.methods.feature_options import MapConfig
from rdcache.methods.probed import ProbedBaseline
from rdcache.methods.registry import register
from rdcache.methods.stage_pairs import connector, maps_of, stage_pair
from rdcache.methods.teacher_logits import linear_logits, pooled_tap
from rdcache.models import StudentOutput


class SRRLConfig(MapConfig):
    """Options of SRRL."""

    tap: str | None = Field(
        default=None,
        description="Tap that is read and probed (default: the pooled one, where the store holds "
        "it, else the teacher's default tap).",
    )
    activation: Literal["none", "relu"] = Field(
        default="none",
        description="What the connector ends in; relu, as published, where the teacher's features "
        "are never negative.",
    )

    @model_validator(mode="after")
    def _targets_can_be_reached(self) -> SRRLConfig:
        if self.activation == "relu" and self.feature_norm == "channel":
            raise ValueError("standardised features are negative too: relu needs feature_norm=none")
        return self


@register(
    "srrl",
    title="Softmax regression: the teacher's classifier judges the student's features",
    needs="one tap: a map, tokens or a vector; a linear probe classifies it",
    paper="Yang et al., ICLR",
    year=2021,
)
class SoftmaxRegression(ProbedBaseline):
    """Terms: `ce`, `fm` (feature matching) and `sr` (softmax regression)."""

    Config: ClassVar[type[MethodConfig]] = SRRLConfig
    config: SRRLConfig
    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, config: SRRLConfig, context: MethodContext) -> None:
        if config.tap is None:
            config = config.model_copy(update={"tap": pooled_tap(context)})
        super().__init__(config, context)
        self.pair = stage_pair(context.tap(config.tap).name, config.stage, context)
        self.student_stages = (self.pair.stage,)
        self.maps = maps_of(self.pair, config.feature_norm, context)
        self.connector = connector(self.pair.student_channels, self.pair.teacher_channels)
        if config.activation == "relu":
            self.connector.append(nn.ReLU())
        weight, bias = self._head_of_standardised_features()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def probed_tap(self, context: MethodContext) -> str:
        """The tap that is read."""
        return context.tap(self.config.tap).name

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the squared errors of features and of what the teacher's classifier says."""
        connected = self.connector(student.stages[self.pair.stage])
        connected = connected.to(self.weight.dtype).mean(dim=(2, 3))
        features = self.maps(batch.taps[self.pair.tap.name]).mean(dim=(2, 3))
        judged, logits = (
            linear_logits(either, self.weight, self.bias) for either in (connected, features)
        )
        return {
            "fm": self.config.weight * F.mse_loss(connected, features),
            "sr": self.config.weight * F.mse_loss(judged, logits),
        }

    def _head_of_standardised_features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The probe W·f + b in terms of (f − mean)·scale: (W/scale)·f̂ + (b + W·mean)."""
        weight, bias = self.head.weight, self.head.bias
        if self.maps.mean is None or self.maps.scale is None:
            return weight.clone(), bias.clone()
        return weight / self.maps.scale.flatten(), bias + weight @ self.maps.mean.flatten()
