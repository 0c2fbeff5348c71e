"""Students of volumes, on MONAI's networks: a residual network that classifies, and a U-Net.

MONAI takes seconds to import, so that happens where a network is built.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import torch
from torch import nn

from rdcache.errors import UsageError
from rdcache.models.backbones import SegmentedBackbone, Stages, cut_volume_resnet
from rdcache.models.decoders import Decoder
from rdcache.models.student import StudentCard, StudentInput
from rdcache.models.student_recipe import Parts, StudentRecipe

CHANNELS = (1, 2, 3, 4)
RESNET_STAGES: Stages = {"s1": (64, 4), "s2": (128, 8), "s3": (256, 16), "s4": (512, 32)}
UNET_WIDTHS = (16, 32, 64, 128, 256)
UNET_STAGES: Stages = {f"s{n}": (width, 2**n) for n, width in enumerate(UNET_WIDTHS)}
EXPECTED = StudentInput(64, (0.5,), (0.5,))


def monai_networks(module: str) -> Any:
    """Import a module of `monai.networks.nets`.

    Raises:
        UsageError: MONAI is not installed.
    """
    try:
        # It warns of its own dependencies, and puts a printer of its own in place of Python's.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module(f"monai.networks.nets.{module}")
    except ModuleNotFoundError as missing:
        raise UsageError(
            f"networks for volumes need the package {missing.name}.",
            next="pip install 'rdcache[volumes]'",
        ) from missing


def resnet3d() -> StudentRecipe:
    """ResNet-18 with 3D convolutions (Hara et al., CVPR 2018) at the strides of the 2D one.

    Shortcuts are of type B, without bias: MONAI's type A detaches its input, so that no gradient
    passes. MedicalNet's weights of ResNet-18 are of type A and do not fit.
    """
    return StudentRecipe(
        card=StudentCard(
            "resnet3d-18",
            "ResNet-18 of volumes",
            RESNET_STAGES["s4"][0],
            RESNET_STAGES,
            parameters=33_160_000,
            dimensions=3,
        ),
        build=_build_resnet,
        pretrained=None,
        cut=lambda network: (SegmentedBackbone(cut_volume_resnet(network), RESNET_STAGES), None),
        expected=EXPECTED,
        channels=CHANNELS,
    )


def unet3d() -> StudentRecipe:
    """MONAI's `BasicUNet` of volumes (Falk et al., Nature Methods 2019), cut at its five sizes.

    Group norm, because batches of volumes are small, and because instance norm has nothing to
    normalise where the deepest map of a small patch is one voxel.
    """
    return StudentRecipe(
        card=StudentCard(
            "unet3d",
            "U-Net of volumes",
            UNET_WIDTHS[-1],
            UNET_STAGES,
            parameters=5_658_864,
            task_kind="segmentation",
            dimensions=3,
        ),
        build=_build_unet,
        pretrained=None,
        cut=_cut_unet,
        expected=StudentInput(64, (0.5,), (0.5,), multiple_of=UNET_STAGES["s4"][1]),
        channels=CHANNELS,
    )


class VolumeUNetDecoder(Decoder):
    """The decoder of MONAI's `BasicUNet`."""

    sees = ("s4", "s3", "s2", "s1", "s0")

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [network.upcat_4, network.upcat_3, network.upcat_2, network.upcat_1]
        )
        self.width = UNET_WIDTHS[0]

    def forward(self, maps: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `Decoder.forward`."""
        x = maps[self.sees[0]]
        for block, stage in zip(self.blocks, self.sees[1:], strict=True):
            x = block(x, maps[stage])
        return x


def _build_resnet(channels: int) -> nn.Module:
    network: nn.Module = monai_networks("resnet").resnet18(
        spatial_dims=3,
        n_input_channels=channels,
        conv1_t_stride=2,
        shortcut_type="B",
        bias_downsample=False,
        feed_forward=False,
    )
    return network


def _build_unet(channels: int) -> nn.Module:
    network: nn.Module = monai_networks("basic_unet").BasicUNet(
        spatial_dims=3,
        in_channels=channels,
        features=(*UNET_WIDTHS, UNET_WIDTHS[0]),
        norm=("group", {"num_groups": 8, "affine": True}),
    )
    network.final_conv = nn.Identity()
    return network


def _cut_unet(network: Any) -> Parts:
    sizes = (network.conv_0, network.down_1, network.down_2, network.down_3, network.down_4)
    segments = OrderedDict((f"s{number}", module) for number, module in enumerate(sizes))
    return SegmentedBackbone(segments, UNET_STAGES), VolumeUNetDecoder(network)
