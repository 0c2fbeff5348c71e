"""Students that segment: a classifier's backbone as encoder, and a decoder that sees its stages.

The decoders themselves are the part of `decoders.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, Literal

import torch
from torch import nn

from rdcache.errors import UsageError
from rdcache.models.backbones import Backbone
from rdcache.models.decoders import Decoder
from rdcache.models.student import Student, StudentInput, StudentOutput, TaskKind


class SegmentationStudent(Student):
    """An encoder, a decoder, and a last convolution that classifies every position.

    A map that is injected at a stage of the encoder takes the place of that stage's skip too, and
    everything deeper is computed from it; shallower skips are the student's own.
    """

    task_kind: ClassVar[TaskKind] = "segmentation"

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        decoder: Decoder,
        num_classes: int,
        expected: StudentInput,
        dimensions: Literal[2, 3] = 2,
    ) -> None:
        self.width = decoder.width
        super().__init__(name, backbone, num_classes, expected, dimensions)
        self.decoder = decoder

    def _last_layer(self) -> nn.Conv2d | nn.Conv3d:
        convolution = nn.Conv2d if self.dimensions == 2 else nn.Conv3d
        return convolution(self.width, self.num_classes, kernel_size=1)

    def forward(self, images: torch.Tensor, stages: Collection[str] = ()) -> StudentOutput:
        """Classify every position of a batch; see `Student.forward`."""
        self._require(images, stages)
        _, maps = self.backbone(images, self.backbone.chain)
        output = self.conclude(maps)
        return StudentOutput(
            output.features, output.logits, {stage: maps[stage] for stage in stages}
        )

    def conclude(self, maps: Mapping[str, torch.Tensor]) -> StudentOutput:
        """See `Student.conclude`.

        Raises:
            UsageError: a map that the decoder sees is not among them.
        """
        lacking = [stage for stage in self.decoder.sees if stage not in maps]
        if lacking:
            raise UsageError(
                f"{self.name} needs its own shallower maps to run on from a stage.",
                lacking=", ".join(lacking),
            )
        features = self.backbone.pool(maps[self.backbone.chain[-1]])
        return StudentOutput(features, self.classifier(self.decoder(maps)), dict(maps))
