"""What a student is: a backbone, a classifier on its features, and the stages in between.

Which students there are is the part of `students.py`, files of trained ones that of
`student_files.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rdcache.errors import UnknownNameError, UsageError
from rdcache.models.backbones import Backbone, Stages
from rdcache.models.preprocessing import Preprocessing

# Stages at which a teacher's may stand. `s4_pre` is on the way to `s4`, at the same stride.
CANONICAL_STAGES = ("s1", "s2", "s3", "s4")


@dataclass(frozen=True)
class StudentOutput:
    """What a student computes for a batch.

    Attributes:
        features: (B, D), after global average pooling; the input of the classifier.
        logits: (B, C).
        stages: the maps (B, C, H, W) asked for.
    """

    features: torch.Tensor
    logits: torch.Tensor
    stages: dict[str, torch.Tensor]


@dataclass(frozen=True)
class StudentCard:
    """One entry of the catalogue of students.

    Attributes:
        feature_dim: width D of the features that the classifier sees.
        stages: stage name → (channels, stride); `s4` is the map that is pooled.
        parameters: number of trainable parameters without the classifier.
    """

    name: str
    title: str
    feature_dim: int
    stages: Stages
    parameters: int


class Student(nn.Module):
    """A backbone and the one linear classifier that it shares with the reprogrammed teacher.

    There is no dropout before the classifier: it would have to fall on both branches alike.

    Attributes:
        name, num_classes: as given to `create_student`.
        dimensions: 2 for images, 3 for volumes.
        feature_dim: width D of the features.
        stages: stage name → (channels, stride).
        injectable: stages whose maps may be replaced, shallow to deep; see `resume`.
        mean, std: normalisation of its input, in fractions of full white.
        input_size: side in pixels of the input it is meant for.
    """

    dimensions = 2

    def __init__(
        self, name: str, backbone: Backbone, num_classes: int, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.feature_dim = backbone.feature_dim
        self.stages = backbone.stages
        self.injectable = tuple(name for name in backbone.chain if name in CANONICAL_STAGES)
        self.mean = preprocessing.mean
        self.std = preprocessing.std
        self.input_size = preprocessing.size
        self.backbone = backbone
        self.classifier = nn.Linear(backbone.feature_dim, num_classes)

    @property
    def architecture(self) -> dict[str, Any]:
        """Enough to rebuild the network: the arguments of `create_student`."""
        return {"name": self.name, "num_classes": self.num_classes}

    def forward(self, images: torch.Tensor, stages: Collection[str] = ()) -> StudentOutput:
        """Classify a batch.

        Args:
            images: float32 (B, 3, H, W), normalised by `mean` and `std`.
            stages: names of the maps to return besides.

        Raises:
            UnknownNameError: the student has no such stage.
        """
        self._require_stages(stages)
        features, maps = self.backbone(images, stages)
        return StudentOutput(features, self.classifier(features), maps)

    def resume(
        self, stage: str, maps: torch.Tensor, earlier: Mapping[str, torch.Tensor]
    ) -> StudentOutput:
        """Run on from another map in place of a stage's own, through everything behind it.

        In evaluation mode `resume(s, output.stages[s], output.stages)` is the forward pass.

        Args:
            maps: (B, C, H, W), with the channels and the stride of the stage.
            earlier: the student's own maps of shallower stages, where something behind the stage
                sees them (the skips of a U-Net); others are ignored.

        Returns:
            As `forward`, with the maps of this stage and of all behind it.

        Raises:
            UnknownNameError: the student has no such stage.
            UsageError: it is not a chain of stages, so that nothing can be resumed; or maps that
                are needed are not among `earlier`.
        """
        self._require_stages((stage,))
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
        """Compute the map of the stage behind this one, (B, C', H', W'): one step of `resume`.

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

    def _require_stages(self, stages: Collection[str]) -> None:
        for stage in stages:
            if stage not in self.stages:
                raise UnknownNameError.of(f"stage of {self.name}", stage, self.stages)
