"""EfficientNet-Lite0 as a student: small, and with ImageNet weights that install from the index."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import timm
from torch import nn

from rdcache.errors import WeightsNotFoundError
from rdcache.models.backbones import SegmentedBackbone, Segments, Stages
from rdcache.models.efficientnet_lite import PREPROCESSING, foreign, packaged_file, rename
from rdcache.models.student import StudentCard, StudentInput
from rdcache.models.student_recipe import StudentRecipe
from rdcache.models.weight_files import load_matching, read_tensors

VARIANT = 0
STAGES: Stages = {
    "s1": (24, 4),
    "s2": (40, 8),
    "s3": (112, 16),
    "s4_pre": (320, 32),
    "s4": (1280, 32),
}
CARD = StudentCard("efficientnet-lite0", "EfficientNet-Lite0", 1280, STAGES, parameters=3_371_008)


def efficientnet_lite0() -> StudentRecipe:
    """EfficientNet-Lite0 that classifies."""
    return StudentRecipe(
        card=CARD,
        build=lambda channels: _network(),
        pretrained=_pretrained,
        cut=lambda network: (SegmentedBackbone(cut_efficientnet(network), STAGES), None),
        expected=StudentInput(PREPROCESSING.size, PREPROCESSING.mean, PREPROCESSING.std),
        rename=partial(rename, VARIANT),
        foreign=foreign,
    )


def cut_efficientnet(network: Any) -> Segments:
    """Cut a timm EfficientNet at the last block of each stride, and after its last convolution."""
    blocks = network.blocks
    return OrderedDict(
        s1=nn.Sequential(network.conv_stem, network.bn1, *blocks[:2]),
        s2=blocks[2],
        s3=blocks[3:5],
        s4_pre=blocks[5:7],
        s4=nn.Sequential(network.conv_head, network.bn2),
    )


def _network() -> Any:
    return timm.create_model(f"tf_efficientnet_lite{VARIANT}", num_classes=0)


def _pretrained() -> Any:
    """Build it with the weights of the installed package.

    Raises:
        WeightsNotFoundError: the package is not installed.
    """
    path = packaged_file(VARIANT)
    if path is None:
        raise WeightsNotFoundError(
            f"the ImageNet weights of {CARD.name} are not installed.",
            next="pip install 'rdcache[demo]'",
            or_pass="--student-weights FILE with its state dict",
        )
    network = _network()
    load_matching(network, rename(VARIANT, read_tensors(path)), path, CARD.name)
    return network
