"""Students on torchvision's small networks: classifiers, and U-Nets with the same backbones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from torchvision import models as torchvision_models

from rdcache.errors import WeightsNotFoundError
from rdcache.models.backbones import (
    SegmentedBackbone,
    Segments,
    Stages,
    cut_mobilenet,
    cut_resnet,
    cut_shufflenet,
)
from rdcache.models.decoders import UNetDecoder
from rdcache.models.student import StudentCard
from rdcache.models.student_recipe import IMAGENET_INPUT, Parts, StudentRecipe

UNET_SEES = ("s4", "s3", "s2", "s1", "s0")


@dataclass(frozen=True)
class _Network:
    """A torchvision network and where it is cut.

    Attributes:
        channels: of s1…s4, or of five stages with `s4_pre` before a last convolution at the same
            stride.
        stem: modules before its map at stride 2, and the channels of that map.
        parameters: of the backbone, and of a U-Net on it without its last layer.
    """

    name: str
    constructor: str
    title: str
    cut: Callable[[Any], Segments]
    channels: tuple[int, ...]
    stem: tuple[int, int]
    parameters: tuple[int, int]

    @property
    def stages(self) -> Stages:
        """Stage name → (channels, stride)."""
        pyramid = len(self.channels) == 4
        names = ["s1", "s2", "s3", "s4"] if pyramid else ["s1", "s2", "s3", "s4_pre", "s4"]
        strides = [4, 8, 16, 32, 32][: len(names)]
        return dict(zip(names, zip(self.channels, strides, strict=True), strict=True))


_NETWORKS = (
    _Network(
        "resnet18",
        "resnet18",
        "ResNet-18",
        cut_resnet,
        (64, 128, 256, 512),
        (3, 64),
        (11_176_512, 12_156_608),
    ),
    _Network(
        "mobilenet",
        "mobilenet_v2",
        "MobileNetV2",
        cut_mobilenet,
        (24, 32, 96, 320, 1280),
        (2, 16),
        (2_223_872, 3_655_552),
    ),
    _Network(
        "shufflenet",
        "shufflenet_v2_x1_0",
        "ShuffleNetV2 ×1.0",
        cut_shufflenet,
        (24, 116, 232, 464, 1024),
        (1, 24),
        (1_253_604, 2_631_140),
    ),
    _Network(
        "shufflenet-x0.5",
        "shufflenet_v2_x0_5",
        "ShuffleNetV2 ×0.5",
        cut_shufflenet,
        (24, 48, 96, 192, 1024),
        (1, 24),
        (341_792, 1_562_656),
    ),
)


def classifiers() -> list[StudentRecipe]:
    """The students that classify images."""
    return [_recipe(network) for network in _NETWORKS]


def unets() -> list[StudentRecipe]:
    """The students that segment them, on the backbones of the former."""
    return [_unet(network) for network in _NETWORKS]


def _recipe(network: _Network) -> StudentRecipe:
    stages = network.stages
    return StudentRecipe(
        card=StudentCard(
            network.name,
            network.title,
            network.channels[-1],
            stages,
            network.parameters[0],
        ),
        build=lambda channels: _headless(torchvision_models.get_model(network.constructor)),
        pretrained=lambda: _pretrained(network),
        cut=lambda module: (SegmentedBackbone(network.cut(module), stages), None),
    )


def _unet(network: _Network) -> StudentRecipe:
    """The same encoder with one stage more, at stride 2."""
    classifier = _recipe(network)
    modules, channels = network.stem
    stages = {"s0": (channels, 2), **network.stages}

    def cut(module: Any) -> Parts:
        encoder = SegmentedBackbone(network.cut(module), stages, modules)
        return encoder, UNetDecoder(stages, UNET_SEES)

    card = replace(
        classifier.card,
        name=f"unet-{network.name}",
        title=f"U-Net on {network.title}",
        stages=stages,
        parameters=network.parameters[1],
        task_kind="segmentation",
    )
    return replace(classifier, card=card, cut=cut, expected=replace(IMAGENET_INPUT, multiple_of=32))


def _pretrained(network: _Network) -> nn.Module:
    """Build a torchvision network with its ImageNet weights, and without its classifier."""
    module: nn.Module = torchvision_models.get_model(network.constructor)
    published = torchvision_models.get_model_weights(network.constructor).DEFAULT
    try:
        tensors = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except OSError as error:
        raise WeightsNotFoundError(
            f"the ImageNet weights of {network.name} cannot be downloaded.",
            reason=error,
            looked_for=published.url,
            or_pass="--student-weights FILE with a copy of that file",
        ) from error
    module.load_state_dict(tensors)
    return _headless(module)


def _headless(module: nn.Module) -> nn.Module:
    setattr(module, "fc" if hasattr(module, "fc") else "classifier", nn.Identity())
    return module
