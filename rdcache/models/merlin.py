"""Merlin's image encoder: a ResNet-152 inflated to volumes, trained on abdominal CT with reports.

The modules bear the names of the published file. All convolutions of three voxels are as wide along
z as within slices.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from rdcache.models.cards import TeacherEntry
from rdcache.models.taps import TapNetwork
from rdcache.models.volume_networks import Oriented
from rdcache.models.volume_preprocessing import VolumePreprocessing
from rdcache.models.weight_files import Tensors, without_prefix

EXPANSION = 4
RGB = 3
ENCODER = "encode_image.i3_resnet."


class Bottleneck(nn.Module):
    """torchvision's bottleneck in three dimensions: 1×1×1, 3×3×3 with the stride, 1×1×1."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = EXPANSION * width
        self.conv1 = nn.Conv3d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(outputs)
        self.downsample: nn.Module | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv3d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm3d(outputs)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, D, H, W) → (B, 4·width, D/stride, H/stride, W/stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + identity)


class InflatedResNet(TapNetwork):
    """Stages at strides 4 to 32 within slices, half of that along z.

    Args:
        layers: blocks of each stage; 3, 8, 36, 3 for ResNet-152.
    """

    def __init__(self, layers: tuple[int, int, int, int] = (3, 8, 36, 3), width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(RGB, width, (3, 7, 7), (1, 2, 2), (1, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        inputs = width
        for number, depth in enumerate(layers):
            block_width = width * 2**number
            blocks = [Bottleneck(inputs, block_width, stride=1 if number == 0 else 2)]
            inputs = EXPANSION * block_width
            blocks += [Bottleneck(inputs, block_width, stride=1) for _ in range(depth - 1)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`; of volumes with their one channel three times."""
        x = torch.relu(self.bn1(self.conv1(images)))
        x = nn.functional.max_pool3d(x, 3, 2, 1)
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
            yield f"s{number}", x
        yield "pooled", x.mean((2, 3, 4))


def rename(tensors: Tensors) -> Tensors:
    """The image encoder of the published file, which holds the text encoder too."""
    tensors = without_prefix(tensors, "module.", "model.")
    inside = {name: value for name, value in tensors.items() if name.startswith(ENCODER)}
    return without_prefix(inside or tensors, ENCODER)


ENTRIES = (
    TeacherEntry(
        name="merlin",
        title="Merlin, inflated ResNet-152 on abdominal CT with reports",
        architecture="merlin/i3d-resnet152-sra",
        # Its volumes lie along head, right, front.
        build=lambda: Oriented(InflatedResNet(), "SRA"),
        rename=rename,
        shapes={
            "s1": (256, 80, 56, 56),
            "s2": (512, 40, 28, 28),
            "s3": (1024, 20, 14, 14),
            "s4": (2048, 10, 7, 7),
            "pooled": (2048,),
        },
        preprocessing=VolumePreprocessing(
            (160, 224, 224),
            channels=RGB,
            window=(-1000, 1000),
            divisor=32,
            spacing=(3.0, 1.5, 1.5),
        ),
        licence="MIT, gated",
        source="the Hugging Face hub, stanfordmimi/Merlin: ask for access there",
        file="i3_resnet_clinical_longformer_best_clip_04-02-2024_23-21-36_epoch_99.pt",
        corpora=frozenset({"merlin-abdominal-ct"}),
    ),
)
