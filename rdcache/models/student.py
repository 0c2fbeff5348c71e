"""What a student is: a backbone, a last layer, and named stages that can be replaced.

Which students there are is the part of `students.py`, files of trained ones that of
`student_files.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from rdcache.errors import UnknownNameError, UsageError
from rdcache.models.backbones import Backbone, Stages

TaskKind = Literal["classification", "segmentation"]

# Stages at which a teacher's may stand. `s4_pre` is on the way to `s4`, at the same stride.
CANONICAL_STAGES = ("s1", "s2", "s3", "s4")


@dataclass(frozen=True)
class StudentOutput:
    """What a student computes for a batch.

    Attributes:
        features: (B, D), after global average pooling: the input of the classifier; of a
            segmentation student the deepest map of its encoder, averaged over positions.
        logits: (B, C); of a segmentation student (B, C, H, W) or (B, C, D, H, W), as many
            positions as its input.
        stages: the maps (B, C, H, W) or (B, C, D, H, W) asked for.
    """

    features: torch.Tensor
    logits: torch.Tensor
    stages: dict[str, torch.Tensor]


@dataclass(frozen=True)
class StudentCard:
    """One entry of the catalogue of students.

    Attributes:
        feature_dim: width D of the features.
        stages: stage name → (channels, stride); the last one is the map that is pooled.
        parameters: number of trainable parameters without the last layer.
        task_kind: whether it classifies images or their positions.
        dimensions: 2 for images, 3 for volumes.
    """

    name: str
    title: str
    feature_dim: int
    stages: Stages
    parameters: int
    task_kind: TaskKind = "classification"
    dimensions: Literal[2, 3] = 2


@dataclass(frozen=True)
class StudentInput:
    """What a student expects of its input.

    Attributes:
        size: side in pixels or voxels of the input it is meant for.
        mean, std: normalisation, one number a channel, in fractions of full white.
        multiple_of: sides of the input are multiples of this.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    multiple_of: int = 1


class Student(nn.Module):
    """A backbone and the one linear classifier that it shares with the reprogrammed teacher.

    There is no dropout before the classifier: it would have to fall on both branches alike.

    Attributes:
        name, num_classes: as given to `create_student`.
        task_kind: whether it classifies images or their positions.
        dimensions: 2 for images, 3 for volumes.
        channels: of its input.
        feature_dim: width D of the features.
        stages: stage name → (channels, stride).
        injectable: stages in whose place a teacher's may stand, shallow to deep: those of s1…s4
            that it can be resumed from. None where it is not a chain of stages.
        mean, std: normalisation of its input, one number a channel, in fractions of full white.
        input_size: side in pixels or voxels of the input it is meant for.
        multiple_of: sides of its input are multiples of this.
        classifier: its last layer.
    """

    task_kind: ClassVar[TaskKind] = "classification"
    classifier: Any  # nn.Linear; of a student that segments a convolution

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        num_classes: int,
        expected: StudentInput,
        dimensions: Literal[2, 3] = 2,
    ) -> None:
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.dimensions = dimensions
        self.channels = len(expected.mean)
        self.feature_dim = backbone.feature_dim
        self.stages = backbone.stages
        self.injectable = tuple(name for name in backbone.chain if name in CANONICAL_STAGES)
        self.mean = expected.mean
        self.std = expected.std
        self.input_size = expected.size
        self.multiple_of = expected.multiple_of
        self.backbone = backbone
        self.classifier = self._last_layer()

    def _last_layer(self) -> nn.Linear | nn.Conv2d | nn.Conv3d:
        return nn.Linear(self.feature_dim, self.num_classes)

    @property
    def architecture(self) -> dict[str, Any]:
        """Enough to rebuild the network: the arguments of `create_student`."""
        own = {"name": self.name, "num_classes": self.num_classes}
        # Images have three; files from before there were volumes say nothing of it.
        return own if self.dimensions == 2 else own | {"channels": self.channels}

    def forward(self, images: torch.Tensor, stages: Collection[str] = ()) -> StudentOutput:
        """Classify a batch.

        Args:
            images: float32 (B, 3, H, W), or volumes (B, channels, D, H, W), normalised by `mean`
                and `std`.
            stages: names of the maps to return besides.

        Raises:
            UnknownNameError: the student has no such stage.
            UsageError: a side of the images is no multiple of `multiple_of`.
        """
        self._require(images, stages)
        features, maps = self.backbone(images, stages)
        return StudentOutput(features, self.classifier(features), maps)

    def resume(
        self, stage: str, maps: torch.Tensor, earlier: Mapping[str, torch.Tensor]
    ) -> StudentOutput:
        """Run on from another map in place of a stage's own, through everything behind it.

        In evaluation mode `resume(s, output.stages[s], output.stages)` is the forward pass.

        Args:
            maps: (B, C, H, W) or (B, C, D, H, W), with the channels and stride of the stage.
            earlier: the student's own maps of shallower stages, where something behind the stage
                sees them (the skips of a U-Net); others are ignored.

        Returns:
            As `forward`, with the maps of this stage and of all behind it.

        Raises:
            UnknownNameError: the student has no such stage.
            UsageError: it is not a chain of stages, so that nothing can be resumed; or maps that
                are needed are not among `earlier`.
        """
        self._require(None, (stage,))
        chain = self.backbone.chain
        if stage not in chain:
            raise UsageError(
                f"{self.name} is not a chain of stages: none of them can be replaced.",
                instead="a student of `rdcache list students`",
            )
        at = chain.index(stage)
        known = {name: earlier[name] for name in chain[:at] if name in earlier}
        known[stage] = maps
        for name, following in zip(chain[at:], chain[at + 1 :], strict=False):
            known[following] = self.advance(name, known[name])
        output = self.conclude(known)
        return StudentOutput(
            output.features, output.logits, {name: known[name] for name in chain[at:]}
        )

    def advance(self, stage: str, maps: torch.Tensor) -> torch.Tensor:
        """Compute the map of the stage behind this one: one step of `resume`.

        Raises:
            UsageError: it is not a chain of stages, or this is its last.
        """
        return self.backbone.advance(stage, maps)

    def conclude(self, maps: Mapping[str, torch.Tensor]) -> StudentOutput:
        """Compute features and logits from the maps of the stages: the end of `resume`.

        Args:
            maps: of the last stage, and of those that something behind it sees.
        """
        features = self.backbone.pool(maps[self.backbone.chain[-1]])
        return StudentOutput(features, self.classifier(features), dict(maps))

    def _require(self, images: torch.Tensor | None, stages: Collection[str]) -> None:
        for stage in stages:
            if stage not in self.stages:
                raise UnknownNameError.of(f"stage of {self.name}", stage, self.stages)
        if images is None or self.multiple_of == 1:
            return
        sides = tuple(images.shape[2:])
        if any(side % self.multiple_of for side in sides):
            raise UsageError(
                f"the sides of what {self.name} sees must be multiples of {self.multiple_of}.",
                given="×".join(map(str, sides)),
            )
