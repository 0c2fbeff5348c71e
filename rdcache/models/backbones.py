"""The trainable part of a student in front of its classifier: stages, then pooled features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Collection
from itertools import islice
from typing import Any

import torch
from torch import nn
from torchvision.models import MobileNetV2, ResNet, ShuffleNetV2

from rdcache.errors import UsageError
from rdcache.models.taps import measure_shapes
from rdcache.models.timm_taps import TimmTaps

Stages = dict[str, tuple[int, int]]
Segments = OrderedDict[str, nn.Module]


class Backbone(nn.Module, ABC):
    """Images in, pooled features and the maps of named stages out.

    Attributes:
        feature_dim: width of the features.
        stages: stage name → (channels, stride).
        chain: the stages in the order in which each is computed from the one before it alone;
            none where the network is no such chain.
    """

    feature_dim: int
    stages: Stages
    chain: tuple[str, ...] = ()

    @abstractmethod
    def forward(
        self, images: torch.Tensor, stages: Collection[str] = ()
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Compute features (B, D) and the asked-for stages, each (B, C, H, W)."""

    def advance(self, stage: str, maps: torch.Tensor) -> torch.Tensor:
        """Compute the map of the next stage of the chain from this one's.

        Raises:
            UsageError: the backbone is not a chain of stages, or this is its last.
        """
        raise UsageError("this network is not a chain of stages.", asked_for=stage)

    def pool(self, maps: torch.Tensor) -> torch.Tensor:
        """Compute features (B, D) from the map of the last stage."""
        return maps.mean(tuple(range(2, maps.ndim)))


class SegmentedBackbone(Backbone):
    """A chain of segments, each ending in a named stage; the last one is pooled.

    Because it is a chain, any stage can be replaced and the rest run on from there.

    Args:
        stem: how many modules of the first segment come before the stage `s0`, a shallower map
            for the skips of a U-Net; 0 where there is no such stage. Weights are named alike with
            and without it, so that a classifier's backbone starts a U-Net's encoder.
    """

    def __init__(self, segments: Segments, stages: Stages, stem: int = 0) -> None:
        super().__init__()
        self.stages = dict(stages)
        self.stem = stem
        self.chain = (*(("s0",) if stem else ()), *segments)
        self.segments = nn.ModuleDict(segments)
        self.feature_dim = stages[self.chain[-1]][0]

    def forward(
        self, images: torch.Tensor, stages: Collection[str] = ()
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See `Backbone.forward`."""
        maps = {}
        x = images
        for name in self.chain:
            x = self._run(name, x)
            if name in stages:
                maps[name] = x
        return self.pool(x), maps

    def advance(self, stage: str, maps: torch.Tensor) -> torch.Tensor:
        """See `Backbone.advance`."""
        following = self.chain[self.chain.index(stage) + 1 :]
        if not following:
            raise UsageError("there is no stage behind the last.", asked_for=stage)
        return self._run(following[0], maps)

    def _run(self, stage: str, x: torch.Tensor) -> torch.Tensor:
        """Compute the map of a stage from that of the stage before it, or from images."""
        number = self.chain.index(stage)
        if not self.stem or number > 1:
            return self.segments[stage](x)
        first = self.segments[self.chain[1]].children()
        for module in islice(first, self.stem) if number == 0 else islice(first, self.stem, None):
            x = module(x)
        return x


class TimmBackbone(Backbone):
    """Any timm network without its classifier; features are what its head would classify."""

    def __init__(self, model: nn.Module, input_size: int) -> None:
        super().__init__()
        self.network = TimmTaps(model)
        shapes = measure_shapes(self.network.eval(), input_size)
        self.network.train()
        self.feature_dim = shapes["pooled"][0]
        self.stages = {
            name: (shape[0], input_size // shape[1])
            for name, shape in shapes.items()
            if len(shape) == 3
        }

    def forward(
        self, images: torch.Tensor, stages: Collection[str] = ()
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """See `Backbone.forward`."""
        outputs = self.network(images, (*stages, "pooled"))
        return outputs.pop("pooled"), outputs


def cut_resnet(network: ResNet) -> Segments:
    """Cut a torchvision ResNet after each of its four layers."""
    stem = (network.conv1, network.bn1, network.relu, network.maxpool)
    return OrderedDict(
        s1=nn.Sequential(*stem, network.layer1),
        s2=network.layer2,
        s3=network.layer3,
        s4=network.layer4,
    )


def cut_mobilenet(network: MobileNetV2) -> Segments:
    """Cut a torchvision MobileNetV2 at the last block of each stride."""
    blocks = network.features
    return OrderedDict(
        s1=blocks[:4], s2=blocks[4:7], s3=blocks[7:14], s4_pre=blocks[14:18], s4=blocks[18]
    )


def cut_shufflenet(network: ShuffleNetV2) -> Segments:
    """Cut a torchvision ShuffleNetV2 after the stem, its stages, and the last convolution."""
    return OrderedDict(
        s1=nn.Sequential(network.conv1, network.maxpool),
        s2=network.stage2,
        s3=network.stage3,
        s4_pre=network.stage4,
        s4=network.conv5,
    )


def cut_volume_resnet(network: Any) -> Segments:
    """Cut a ResNet of MONAI after each of its four layers."""
    stem = (network.conv1, network.bn1, network.act, network.maxpool)
    return OrderedDict(
        s1=nn.Sequential(*stem, network.layer1),
        s2=network.layer2,
        s3=network.layer3,
        s4=network.layer4,
    )
