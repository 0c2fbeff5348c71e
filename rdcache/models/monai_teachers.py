"""`monai:segresnet` and `monai:swinunetr`: encoders of MONAI's networks with a user's own weights.

Width, channels and depth are read from the file. What no file says is by which MONAI a Swin UNETR
was trained: `monai:swinunetr-duplicates` is for weights of MONAI up to 1.4; see `SwinTaps`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from rdcache.errors import UnknownNameError, WeightsMismatchError, WeightsNotFoundError
from rdcache.models.monai_networks import SegResNetTaps, SwinTaps
from rdcache.models.taps import TapNetwork, measure_shapes
from rdcache.models.teacher import RANDOM, Teacher, WeightsInfo
from rdcache.models.volume_networks import below
from rdcache.models.volume_preprocessing import VolumePreprocessing
from rdcache.models.weight_files import (
    Tensors,
    load_matching,
    read_tensors,
    tensors_digest,
    weight_tensors,
)

FAMILY = "monai"
PATCH = (96, 96, 96)


def load_monai_teacher(name: str, weights: str | None) -> Teacher:
    """Build `monai:NAME` with a file's weights, or random ones.

    Volumes are seen in 0…1 by the dataset's intensity rule, along z, y, x as they are stored.

    Raises:
        UnknownNameError: no such network.
        UsageError: MONAI is not installed.
        WeightsNotFoundError: no file is given, or there is no such file.
        WeightsMismatchError: the file holds another network.
    """
    if name not in NETWORKS:
        raise UnknownNameError.of("encoder of MONAI", name, NETWORKS)
    if weights is None:
        raise WeightsNotFoundError(
            f"nobody publishes the weights of monai:{name} for all.",
            say="--weights FILE, or --weights random for an untrained network",
        )
    tensors: Tensors = {} if weights == RANDOM else read_tensors(Path(weights))
    make, divisor = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, channels, own = make(tensors, weights)
    matched = 0
    if weights != RANDOM:
        matched = load_matching(network.backbone, own, Path(weights), f"monai:{name}")
    loaded = weight_tensors(network)
    return Teacher(
        name=f"{FAMILY}:{name}",
        architecture=f"{FAMILY}/{name}",
        network=network,
        shapes=measure_shapes(network.eval(), PATCH, channels),
        preprocessing=VolumePreprocessing(PATCH, channels, divisor=divisor),
        weights=WeightsInfo(
            source=RANDOM if weights == RANDOM else "file",
            sha256=tensors_digest(loaded),
            licence="as its provider says",
            file="" if weights == RANDOM else Path(weights).name,
            matched=f"{matched} of {len(loaded)}",
        ),
    )


Made = tuple[TapNetwork, int, Tensors]


def _segresnet(tensors: Tensors, file: str) -> Made:
    own = below(tensors)
    if not tensors:
        return SegResNetTaps(), 1, own
    first = _first(own, "convInit.conv.weight", file)
    levels: dict[int, int] = {}
    for name in own:
        if found := re.match(r"down_layers\.(\d+)\.(\d+)\.conv1\.", name):
            level, block = int(found[1]), int(found[2])
            levels[level] = max(levels.get(level, 0), block)
    blocks = tuple(levels.get(level, 1) for level in range(max(levels, default=0) + 1))
    return SegResNetTaps(first.shape[0], first.shape[1], blocks), first.shape[1], own


def _swinunetr(tensors: Tensors, file: str, duplicates: bool = False) -> Made:
    inside = below(tensors, "swinViT.") or below(tensors)
    if not tensors:
        return SwinTaps(duplicates=duplicates), 1, inside
    first = _first(inside, "patch_embed.proj.weight", file)
    width, channels = first.shape[:2]
    return SwinTaps(width, channels, duplicates=duplicates), channels, inside


def _first(tensors: Tensors, name: str, file: str) -> torch.Tensor:
    """The first convolution of volumes, whose shape says how wide the network is."""
    if name not in tensors or tensors[name].ndim != 5:
        raise WeightsMismatchError(
            "this file does not hold such a network of volumes.",
            file=file,
            lacks=name,
            holds=", ".join(list(tensors)[:3]),
        )
    return tensors[name]


# How a network is made of a file's tensors, and what the sides of its input are multiples of.
NETWORKS: dict[str, tuple[Callable[[Tensors, str], Made], int]] = {
    "segresnet": (_segresnet, 8),
    "swinunetr": (_swinunetr, 32),
    "swinunetr-duplicates": (partial(_swinunetr, duplicates=True), 32),
}
