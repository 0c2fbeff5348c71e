"""The catalogue of students: small trainable networks with declared widths and stages.

What a student is stands in `student.py`; files of trained ones are the part of `student_files.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torchvision import models as torchvision_models

from rdcache.errors import UnknownNameError, UsageError, WeightsNotFoundError
from rdcache.models.backbones import (
    Backbone,
    SegmentedBackbone,
    Segments,
    Stages,
    TimmBackbone,
    cut_mobilenet,
    cut_resnet,
    cut_shufflenet,
)
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.student import Student, StudentCard
from rdcache.models.timm_teachers import pretrained_timm, timm_preprocessing, untrained_timm
from rdcache.models.weight_files import load_matching, read_tensors, without_prefix


@dataclass(frozen=True)
class _Recipe:
    """How a torchvision network becomes a student: its constructor and where it is cut."""

    constructor: str
    cut: Callable[[Any], Segments]
    card: StudentCard


def _stages(*channels: int) -> Stages:
    """Four stages, or five with `s4_pre` before a last convolution at the same stride."""
    names = ["s1", "s2", "s3", "s4"] if len(channels) == 4 else ["s1", "s2", "s3", "s4_pre", "s4"]
    strides = [4, 8, 16, 32, 32][: len(channels)]
    return dict(zip(names, zip(channels, strides, strict=True), strict=True))


_RECIPES = {
    recipe.card.name: recipe
    for recipe in (
        _Recipe(
            "resnet18",
            cut_resnet,
            StudentCard("resnet18", "ResNet-18", 512, _stages(64, 128, 256, 512), 11_176_512),
        ),
        _Recipe(
            "mobilenet_v2",
            cut_mobilenet,
            StudentCard(
                "mobilenet", "MobileNetV2", 1280, _stages(24, 32, 96, 320, 1280), 2_223_872
            ),
        ),
        _Recipe(
            "shufflenet_v2_x1_0",
            cut_shufflenet,
            StudentCard(
                "shufflenet",
                "ShuffleNetV2 ×1.0",
                1024,
                _stages(24, 116, 232, 464, 1024),
                1_253_604,
            ),
        ),
        _Recipe(
            "shufflenet_v2_x0_5",
            cut_shufflenet,
            StudentCard(
                "shufflenet-x0.5",
                "ShuffleNetV2 ×0.5",
                1024,
                _stages(24, 48, 96, 192, 1024),
                341_792,
            ),
        ),
    )
}


def create_student(name: str, num_classes: int, weights: str | Path | None = None) -> Student:
    """Build a student.

    Args:
        name: a name of `list_students`, or `timm:NAME`.
        weights: None for an untrained network, `"imagenet"` for torchvision's or timm's
            pretrained backbone (downloaded), or a file: a student of `save_student`, or a state
            dict in torchvision's or timm's names. The classifier is always new.

    Raises:
        UnknownNameError: no such student.
        UsageError: fewer than one class.
        WeightsNotFoundError: no such file, or no way to the hub.
        WeightsMismatchError: less than 99 % of the backbone's tensors are in the file.
    """
    if num_classes < 1:
        raise UsageError("a student needs at least one class.", classes=num_classes)
    imagenet = str(weights) == "imagenet"
    network, preprocessing, cut = _network(name, imagenet)
    if weights is None or imagenet:
        return Student(name, cut(network), num_classes, preprocessing)
    path = Path(weights)
    tensors = without_prefix(read_tensors(path), "module.")
    saved_here = {
        key.removeprefix("backbone."): value
        for key, value in tensors.items()
        if key.startswith("backbone.")
    }
    if saved_here:
        backbone = cut(network)
        load_matching(backbone, saved_here, path, name)
    else:
        load_matching(network, tensors, path, name)
        backbone = cut(network)
    return Student(name, backbone, num_classes, preprocessing)


def _network(
    name: str, imagenet: bool
) -> tuple[nn.Module, Preprocessing, Callable[[Any], Backbone]]:
    """The network a student is made of, under its library's names, and how it becomes a backbone.

    Its tensors are named otherwise once it is cut, so files in the library's names load before.
    """
    if name.startswith("timm:"):
        create = pretrained_timm if imagenet else untrained_timm
        network = create(name.removeprefix("timm:"), num_classes=0)
        preprocessing = timm_preprocessing(network)
        return network, preprocessing, lambda net: TimmBackbone(net, preprocessing.size)
    if name not in _RECIPES:
        raise UnknownNameError.of("student", name, [*_RECIPES, "timm:NAME"])
    recipe = _RECIPES[name]
    network = _torchvision_network(recipe, imagenet)
    return (
        network,
        Preprocessing(),
        lambda net: SegmentedBackbone(recipe.cut(net), recipe.card.stages),
    )


def _torchvision_network(recipe: _Recipe, pretrained: bool) -> nn.Module:
    """Build a torchvision network without its classifier."""
    network: nn.Module = torchvision_models.get_model(recipe.constructor, weights=None)
    if pretrained:
        published = torchvision_models.get_model_weights(recipe.constructor).DEFAULT
        try:
            tensors = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
        except OSError as error:
            raise WeightsNotFoundError(
                f"the ImageNet weights of {recipe.card.name} cannot be downloaded.",
                reason=error,
                looked_for=published.url,
                or_pass="--student-weights FILE with a copy of that file",
            ) from error
        network.load_state_dict(tensors)
    setattr(network, "fc" if hasattr(network, "fc") else "classifier", nn.Identity())
    return network


def list_students() -> list[StudentCard]:
    """Describe every student of the catalogue, without building any of them."""
    return [recipe.card for recipe in _RECIPES.values()]
