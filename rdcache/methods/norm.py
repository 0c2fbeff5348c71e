"""NORM: the student's last map is expanded to N maps that each match the teacher's, and what they
say is added to its features.

    e = BN(E·m_s),    z = W·mean(m_s + BN(R·e)) + b
    L = CE(2.5·layernorm(z), y) + w·ramp·Σ_n mean (e_n − m_t)²

Liu et al., "NORM: Knowledge Distillation via N-to-One Representation Matching", ICLR 2023. E and R
are 1×1 convolutions to N·C_t channels and back, without anything nonlinear between. The larger map
is max-pooled to the smaller one's positions. As in the authors' code N = 8, and the ramp is 0.1,
0.5, 1, 0.5, 0.1 from epochs 0, 10, 20, 180 and 210 of 240, here as shares of training. They weigh
the matching by 1 and CE by 1/16 to 1/2, chosen for each pair of networks; here CE weighs 1 as ever
and the matching 4, the ratio of their 1/4.

What is deployed. E, R, both batch norms and the pooling are affine once trained, so the authors'
student and this one are the same function: the classifier that is evaluated and saved is
W·(I + A) and W·a + b, with A and a of "expand, normalise, reduce, normalise" taken together. Its
*features* are those of the backbone, without what is added to them. This holds for students whose
features are the mean of their last map; others are refused. Where the student's moving average
counts (`--ema`), A and a are those of averages of E, R and both batch norms, with the same decay.

The layer norm cannot be merged. Accuracy does not depend on it, probabilities do: the saved
classifier is multiplied by 2.5/(mean spread of a sample's logits in training). With two classes
every layer-normed logit is ±1 and its gradient vanishes, so then there is none.

With N = 8 a teacher of 1280 channels is matched by 10240. There are at most `width` channels here:
fewer copies are made, at least 2, where N copies would have more.
"""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from rdcache import losses
from rdcache.errors import UsageError
from rdcache.methods.base import CachedBatch, MethodConfig, MethodContext, Terms, TrainingProgress
from rdcache.methods.feature_baselines import MapBaseline
from rdcache.methods.feature_options import MapConfig
from rdcache.methods.last_map import is_mean_of
from rdcache.methods.registry import register
from rdcache.methods.stage_pairs import connector
from rdcache.models import Student, StudentOutput

RAMP = ((210 / 240, 0.1), (180 / 240, 0.5), (20 / 240, 1.0), (10 / 240, 0.5), (0.0, 0.1))
SPREAD = 2.5  # standard deviation of layer-normed logits
EPS = 1e-7
MOMENTUM = 0.1  # of the mean spread, as of batch norm's statistics


class ManyToOneConfig(MapConfig):
    """Options of NORM."""

    weight: float = Field(default=4.0, ge=0, description="Weight of the matching, before its ramp.")
    copies: int = Field(default=8, ge=1, description="N: maps that each match the teacher's.")
    width: int | None = Field(
        default=2560,
        ge=1,
        description="Most channels of all copies together; fewer copies, at least 2, are made of a "
        "teacher's map for which N would have more; null for no limit, as published.",
    )
    logit_norm: Literal["auto", "layer", "none"] = Field(
        default="auto",
        description="Layer norm of the logits before the cross-entropy; auto: of more than two "
        "classes.",
    )


@register(
    "norm",
    title="NORM: the student's expanded last map matches the teacher's N times",
    needs="one tap: a map, tokens or a vector",
    paper="Liu et al., ICLR",
    year=2023,
)
class ManyToOneMatching(MapBaseline):
    """Terms: `ce` and `norm`."""

    Config: ClassVar[type[MethodConfig]] = ManyToOneConfig
    config: ManyToOneConfig
    spread: torch.Tensor

    def __init__(self, config: ManyToOneConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        pair = self.pair
        if pair.student_channels != context.feature_dim:
            raise _other_features(pair.stage)
        self.copies = _affordable_copies(config, pair.teacher_channels)
        channels = self.copies * pair.teacher_channels
        self.expand = connector(pair.student_channels, channels)
        self.reduce = connector(channels, pair.student_channels)
        self.classifier = context.classifier
        wanted = "layer" if context.num_classes > 2 else "none"
        self.logit_norm = wanted if config.logit_norm == "auto" else config.logit_norm
        self.register_buffer("spread", torch.zeros(()))
        self._pooling_checked = False

    def forward(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the terms of the student that has learnt to add what the expansion says."""
        maps = student.stages[self.pair.stage]
        if not self._pooling_checked and not is_mean_of(student.features, maps):
            raise _other_features(self.pair.stage)
        self._pooling_checked = True
        expanded = self.expand(maps)
        added = self.reduce(expanded).mean(dim=(2, 3))
        logits = (student.logits + F.linear(added, self.classifier.weight)).float()
        if self.logit_norm == "layer":
            self._note_spread(logits)
        whole = StudentOutput(
            student.features + added, self._normed(logits), {self.pair.stage: expanded}
        )
        return super().forward(batch, whole, progress)

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the matching of the expanded map, which stands in the place of the student's."""
        expanded = student.stages[self.pair.stage].float()
        theirs = self.maps(batch.taps[self.pair.tap.name])
        size = tuple(map(min, zip(expanded.shape[2:], theirs.shape[2:], strict=True)))
        expanded, theirs = (F.adaptive_max_pool2d(maps, size) for maps in (expanded, theirs))
        matching = losses.many_to_one(expanded, theirs)
        return {"norm": self.config.weight * ramp(progress.by_step) * matching}

    def teacher_logits(self, batch: CachedBatch) -> torch.Tensor:
        """What the teacher says: (B, C), normalised as the student's logits are."""
        return self._normed(super().teacher_logits(batch))

    @property
    def merged(self) -> nn.ModuleList:
        """The layers that expand and reduce."""
        return nn.ModuleList([self.expand, self.reduce])

    @torch.no_grad()
    def deployed(self, student: Student, merged: nn.Module | None = None) -> Student:
        """A copy of a student whose classifier has taken over what the expansion adds."""
        layers = self.merged if merged is None else merged
        first, second = (_affine(each) for each in layers.children())
        matrix = second[0] @ first[0]
        offset = second[0] @ first[1] + second[1]
        whole = copy.deepcopy(student)
        classifier = whole.classifier
        assert isinstance(classifier, nn.Linear)  # of samples, which this method is for alone
        weight, bias = classifier.weight.double(), classifier.bias.double()
        scale = SPREAD / self.spread.double() if self.spread > 0 else 1.0
        classifier.weight.copy_(scale * (weight + weight @ matrix))
        classifier.bias.copy_(scale * (bias + weight @ offset))
        return whole

    def _normed(self, logits: torch.Tensor) -> torch.Tensor:
        if self.logit_norm == "none":
            return logits
        return SPREAD * F.layer_norm(logits.float(), logits.shape[1:], eps=EPS)

    @torch.no_grad()
    def _note_spread(self, logits: torch.Tensor) -> None:
        now = logits.std(dim=1, correction=0).mean()
        mixed = torch.lerp(self.spread, now, MOMENTUM)
        self.spread.copy_(torch.where(self.spread > 0, mixed, now))


def ramp(share: float) -> float:
    """Factor of the matching when so much of training is done."""
    return next(factor for begin, factor in RAMP if share >= begin)


def _affordable_copies(config: ManyToOneConfig, channels: int) -> int:
    if config.width is None:
        return config.copies
    return min(config.copies, max(2, config.width // channels))


def _affine(layers: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix and offset of a 1×1 convolution and its batch norm in evaluation mode, in float64."""
    convolution, norm = layers.children()
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    matrix = scale[:, None] * convolution.weight[:, :, 0, 0].double()
    return matrix, norm.bias.double() - scale * norm.running_mean.double()


def _other_features(stage: str) -> UsageError:
    return UsageError(
        f"norm needs a student that classifies the mean of its {stage}, and this one does not.",
        why="what it adds to that map is merged into the classifier",
        next="--student shufflenet, resnet18 or mobilenet, with stage s4",
    )
