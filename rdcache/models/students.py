"""The catalogue of students: small trainable networks with declared widths and stages.

What a student is stands in `student.py`; files of trained ones are the part of `student_files.py`.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from torch import nn

from rdcache.errors import UnknownNameError, UsageError, WeightsMismatchError
from rdcache.models.backbones import TimmBackbone
from rdcache.models.lite_students import efficientnet_lite0
from rdcache.models.segmentation_student import SegmentationStudent
from rdcache.models.student import Student, StudentCard, StudentInput
from rdcache.models.student_recipe import Parts, StudentRecipe
from rdcache.models.timm_teachers import pretrained_timm, timm_preprocessing, untrained_timm
from rdcache.models.torchvision_students import classifiers, unets
from rdcache.models.vit_students import unet_vit_tiny, vit_tiny
from rdcache.models.volume_students import resnet3d, unet3d
from rdcache.models.weight_files import Tensors, load_matching, read_tensors, without_prefix

TIMM = "timm:"
_RECIPES = {
    recipe.card.name: recipe
    for recipe in (
        *classifiers(),
        efficientnet_lite0(),
        vit_tiny(),
        *unets(),
        unet_vit_tiny(),
        resnet3d(),
        unet3d(),
    )
}


def create_student(
    name: str,
    num_classes: int,
    weights: str | Path | None = None,
    channels: int | None = None,
) -> Student:
    """Build a student.

    Args:
        name: a name of `list_students`, or `timm:NAME`.
        num_classes: of a segmentation student with the background.
        weights: None for an untrained network, `"imagenet"` for torchvision's or timm's
            pretrained backbone (downloaded; EfficientNet-Lite0's is in the extra `demo`), or a
            file: a student of `save_student` (a U-Net also starts from the classifier of the same
            backbone), or a state dict in the names of torchvision, timm or MONAI. The last layer is
            always new.
        channels: of its input; by default 3 for images, 1 for volumes.

    Raises:
        UnknownNameError: no such student.
        UsageError: fewer than one class, or channels that it cannot be built for; or it is one
            for volumes, and MONAI is not installed.
        WeightsNotFoundError: no such file, no way to the hub, or the package is not installed.
        WeightsMismatchError: less than 99 % of the backbone's tensors are in the file, or it is
            known to be of another network.
    """
    if num_classes < 1:
        raise UsageError("a student needs at least one class.", classes=num_classes)
    recipe = _recipe(name, imagenet=str(weights) == "imagenet")
    channels = recipe.channels[0] if channels is None else channels
    if channels not in recipe.channels:
        raise UsageError(
            f"{name} cannot be built for an input of {channels} channels.",
            possible=", ".join(map(str, recipe.channels)),
        )
    if str(weights) == "imagenet":
        if recipe.pretrained is None:
            raise UsageError(
                f"there are no ImageNet weights for {name}, which sees volumes.",
                next="--student-weights FILE, or none",
            )
        backbone, decoder = recipe.cut(recipe.pretrained())
    else:
        network = recipe.build(channels)
        if weights is None:
            backbone, decoder = recipe.cut(network)
        else:
            backbone, decoder = _loaded(recipe, network, Path(weights))
    expected = _of_channels(recipe.expected, channels)
    dimensions = recipe.card.dimensions
    if decoder is None:
        return Student(name, backbone, num_classes, expected, dimensions)
    return SegmentationStudent(name, backbone, decoder, num_classes, expected, dimensions)


def list_students() -> list[StudentCard]:
    """Describe every student of the catalogue, without building any of them."""
    return [recipe.card for recipe in _RECIPES.values()]


def require_fit(name: str, task: str, dimensions: int) -> None:
    """Refuse a student that is made for another kind of dataset.

    Args:
        task: `multiclass`, `multilabel` or `segmentation`.
        dimensions: 2 for images, 3 for volumes.

    Raises:
        UnknownNameError: no such student.
        UsageError: it does not fit; says which one does.
    """
    if name.startswith(TIMM):
        card = StudentCard(name, name, 0, {}, 0)
    elif name in _RECIPES:
        card = _RECIPES[name].card
    else:
        raise UnknownNameError.of("student", name, [*_RECIPES, f"{TIMM}NAME"])
    kind = "segmentation" if task == "segmentation" else "classification"
    if (card.task_kind, card.dimensions) == (kind, dimensions):
        return
    fitting = [
        other.name
        for other in list_students()
        if (other.task_kind, other.dimensions) == (kind, dimensions)
    ]
    # The same network for the other task, where there is one.
    near = {f"unet-{name}", name.removeprefix("unet-")} & set(fitting)
    does = {"classification": "classifies", "segmentation": "segments"}
    objects = {2: "images", 3: "volumes"}
    asked = {"classification": "classified", "segmentation": "segmented"}
    raise UsageError(
        f"{name} {does[card.task_kind]} {objects[card.dimensions]}, "
        f"but these {objects[dimensions]} are to be {asked[kind]}.",
        next=f"--student {min(near) if near else fitting[0]}",
        possible=", ".join(fitting),
    )


def _recipe(name: str, imagenet: bool) -> StudentRecipe:
    if name.startswith(TIMM):
        return _timm_recipe(name, imagenet)
    if name not in _RECIPES:
        raise UnknownNameError.of("student", name, [*_RECIPES, f"{TIMM}NAME"])
    return _RECIPES[name]


def _timm_recipe(name: str, imagenet: bool) -> StudentRecipe:
    """Any timm network that classifies images; what it expects is known once it is built."""
    create = pretrained_timm if imagenet else untrained_timm
    network = create(name.removeprefix(TIMM), num_classes=0)
    preprocessing = timm_preprocessing(network)
    return StudentRecipe(
        card=StudentCard(name, name, 0, {}, 0),
        build=lambda channels: network,
        pretrained=lambda: network,
        cut=lambda module: (TimmBackbone(module, preprocessing.size), None),
        expected=StudentInput(preprocessing.size, preprocessing.mean, preprocessing.std),
    )


def _of_channels(expected: StudentInput, channels: int) -> StudentInput:
    """What is expected of every channel, where one stands for all."""
    if len(expected.mean) == channels:
        return expected
    return replace(expected, mean=expected.mean * channels, std=expected.std * channels)


def _loaded(recipe: StudentRecipe, network: nn.Module, path: Path) -> Parts:
    """Cut a network that has got the tensors of a file: a library's, or those of a student."""
    name = recipe.card.name
    tensors = without_prefix(read_tensors(path), "module.")
    if not _part(tensors, "backbone."):
        if other := recipe.foreign(tensors):
            raise WeightsMismatchError(
                f"this file does not hold the weights of {name}.", file=path, it_is=other
            )
        load_matching(network, recipe.rename(tensors), path, name)
        return recipe.cut(network)
    backbone, decoder = recipe.cut(network)
    load_matching(backbone, _part(tensors, "backbone."), path, name)
    if decoder is not None and (saved := _part(tensors, "decoder.")):
        load_matching(decoder, saved, path, name)
    return backbone, decoder


def _part(tensors: Tensors, prefix: str) -> Tensors:
    return {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
