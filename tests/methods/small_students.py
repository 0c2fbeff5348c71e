"""Students of a few thousand weights, of images or volumes: a chain, and a U-Net."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from rdcache.methods.layers import batch_norm, convolution
from rdcache.models import StudentOutput

WIDTHS = {"s1": 4, "s2": 6, "s3": 8}


class SmallStudent(nn.Module):
    """Three stages at strides 4, 8 and 16, and what a subclass makes of them.

    Attributes as those of `rdcache.models.Student`.
    """

    injectable = tuple(WIDTHS)

    def __init__(self, classes: int, dimensions: int = 2) -> None:
        super().__init__()
        self.dimensions = dimensions
        self.stages = {
            name: (width, 2 ** (i + 2)) for i, (name, width) in enumerate(WIDTHS.items())
        }
        self.feature_dim = WIDTHS["s3"]
        self.backbone = SimpleNamespace(chain=tuple(WIDTHS))
        inputs = [3, *WIDTHS.values()]
        self.segments = nn.ModuleDict(
            {
                name: nn.Sequential(
                    convolution(dimensions, inputs[i], width, 3), batch_norm(dimensions, width)
                )
                for i, (name, width) in enumerate(WIDTHS.items())
            }
        )

    def forward(self, images: torch.Tensor, stages: Collection[str] = ()) -> StudentOutput:
        maps: dict[str, torch.Tensor] = {}
        x = F.interpolate(images, scale_factor=0.5)
        for name in WIDTHS:
            x = maps[name] = self._next(name, x)
        output = self.conclude(maps)
        return StudentOutput(output.features, output.logits, {name: maps[name] for name in stages})

    def advance(self, stage: str, maps: torch.Tensor) -> torch.Tensor:
        chain = list(WIDTHS)
        return self._next(chain[chain.index(stage) + 1], maps)

    def resume(
        self, stage: str, maps: torch.Tensor, earlier: Mapping[str, torch.Tensor]
    ) -> StudentOutput:
        known = {**earlier, stage: maps}
        chain = list(WIDTHS)
        for before, name in zip(
            chain[chain.index(stage) :], chain[chain.index(stage) + 1 :], strict=False
        ):
            known[name] = self.advance(before, known[before])
        return self.conclude(known)

    def conclude(self, maps: Mapping[str, torch.Tensor]) -> StudentOutput:
        raise NotImplementedError

    def _next(self, name: str, maps: torch.Tensor) -> torch.Tensor:
        pool: Any = F.max_pool3d if self.dimensions == 3 else F.max_pool2d
        return torch.relu(pool(self.segments[name](maps), 2))


class SmallClassifier(SmallStudent):
    """Classifies the mean of the last stage."""

    def __init__(self, classes: int, dimensions: int = 2) -> None:
        super().__init__(classes, dimensions)
        self.classifier = nn.Linear(self.feature_dim, classes)

    def conclude(self, maps: Mapping[str, torch.Tensor]) -> StudentOutput:
        features = maps["s3"].flatten(2).mean(2)
        return StudentOutput(features, self.classifier(features), {})


class SmallUNet(SmallStudent):
    """Classifies positions, from all stages."""

    def __init__(self, classes: int, dimensions: int = 2) -> None:
        super().__init__(classes, dimensions)
        self.decoder = nn.Sequential(
            convolution(dimensions, sum(WIDTHS.values()), 8, 3),
            batch_norm(dimensions, 8),
            nn.ReLU(),
        )
        self.classifier = convolution(dimensions, 8, classes, 1)

    def conclude(self, maps: Mapping[str, torch.Tensor]) -> StudentOutput:
        size = [2 * side for side in maps["s1"].shape[2:]]
        all_of_them = torch.cat([F.interpolate(maps[name], size) for name in WIDTHS], dim=1)
        features = maps["s3"].flatten(2).mean(2)
        logits = F.interpolate(self.classifier(self.decoder(all_of_them)), scale_factor=2)
        return StudentOutput(features, logits, {})
