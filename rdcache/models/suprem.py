"""SuPreM: a U-Net, a Swin UNETR and a SegResNet that were trained to segment AbdomenAtlas 1.1."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import nn

from rdcache.models.cards import TeacherEntry
from rdcache.models.monai_networks import SegResNetTaps, SwinTaps
from rdcache.models.volume_networks import LevelTaps, Oriented, below
from rdcache.models.volume_preprocessing import VolumePreprocessing
from rdcache.models.weight_files import Tensors

PATCH = (96, 96, 96)
WINDOW = (-175.0, 250.0)
SPACING = (1.5, 1.5, 1.5)
LICENCE = "CC-BY-NC-ND-4.0, patents pending"
SOURCE = "the Hugging Face hub, MrGiovanni/SuPreM"
# AbdomenAtlas is made of the CT volumes of these public sets.
CORPORA = frozenset(
    {
        *("abdomenatlas", "btcv", "chaos", "flare", "amos", "word", "lits", "kits", "msd"),
        *("totalsegmentator", "abdomenct-1k", "pancreas-ct"),
    }
)


class Convolution(nn.Module):
    """Convolution, normalisation by the statistics of the volume, ReLU.

    The original normalises by the statistics of the batch in evaluation too, where it has one
    volume in a batch: these are the statistics of each volume, however many there are in a batch.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(inputs, outputs, 3, padding=1)
        self.bn1 = nn.InstanceNorm3d(outputs, affine=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs, D, H, W) → (B, outputs, D, H, W)."""
        return torch.relu(self.bn1(self.conv1(x)))


class UNetEncoder(nn.Module):
    """The four levels of SuPreM's U-Net on the way down, under its names."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        inputs = 1
        for level, name in enumerate(("down_tr64", "down_tr128", "down_tr256", "down_tr512")):
            middle, outputs = width * 2**level, width * 2 ** (level + 1)
            convolutions = (Convolution(inputs, middle), Convolution(middle, outputs))
            self.add_module(name, nn.ModuleDict({"ops": nn.Sequential(*convolutions)}))
            inputs = outputs


class UNetTaps(LevelTaps):
    """Each level before it is pooled; the last one is the bottleneck."""

    def __init__(self, width: int = 32) -> None:
        super().__init__(UNetEncoder(width), (1, 2, 4, 8))

    def levels(self, volumes: torch.Tensor) -> Iterator[torch.Tensor]:
        """See `LevelTaps.levels`."""
        x = volumes
        for number, level in enumerate(self.model.children()):
            x = level["ops"](x if number == 0 else nn.functional.max_pool3d(x, 2))
            yield x


def segresnet(tensors: Tensors) -> Tensors:
    """The encoder of the published SegResNet."""
    return {
        name: value
        for name, value in below(tensors).items()
        if name.startswith(("convInit.", "down_layers."))
    }


ENTRIES = (
    TeacherEntry(
        name="suprem-unet",
        title="SuPreM U-Net, trained on AbdomenAtlas 1.1",
        architecture="suprem/unet3d-32-ras",
        build=lambda: Oriented(UNetTaps(), "RAS"),
        rename=partial(below, part=""),
        shapes={
            "stride1": (64, 96, 96, 96),
            "stride2": (128, 48, 48, 48),
            "s1": (256, 24, 24, 24),
            "s2": (512, 12, 12, 12),
            "pooled": (512,),
        },
        preprocessing=VolumePreprocessing(PATCH, window=WINDOW, divisor=8, spacing=SPACING),
        licence=LICENCE,
        source=SOURCE,
        file="supervised_suprem_unet_2100.pth",
        corpora=CORPORA,
    ),
    TeacherEntry(
        name="suprem-swinunetr",
        title="SuPreM Swin UNETR, trained on AbdomenAtlas 1.1",
        architecture="suprem/swinunetr-48-ras",
        build=lambda: Oriented(SwinTaps(48, duplicates=True), "RAS"),
        rename=partial(below, part="swinViT."),
        shapes={
            "stride2": (48, 48, 48, 48),
            "s1": (96, 24, 24, 24),
            "s2": (192, 12, 12, 12),
            "s3": (384, 6, 6, 6),
            "s4": (768, 3, 3, 3),
            "pooled": (768,),
        },
        preprocessing=VolumePreprocessing(PATCH, window=WINDOW, divisor=32, spacing=SPACING),
        licence=LICENCE,
        source=SOURCE,
        file="supervised_suprem_swinunetr_2100.pth",
        corpora=CORPORA,
    ),
    TeacherEntry(
        name="suprem-segresnet",
        title="SuPreM SegResNet, trained on AbdomenAtlas 1.1",
        architecture="suprem/segresnet-16-1224-ras",
        build=lambda: Oriented(SegResNetTaps(16), "RAS"),
        rename=segresnet,
        shapes={
            "stride1": (16, 96, 96, 96),
            "stride2": (32, 48, 48, 48),
            "s1": (64, 24, 24, 24),
            "s2": (128, 12, 12, 12),
            "pooled": (128,),
        },
        preprocessing=VolumePreprocessing(PATCH, window=WINDOW, divisor=8, spacing=SPACING),
        licence=LICENCE,
        source=SOURCE,
        file="supervised_suprem_segresnet_2100.pth",
        corpora=CORPORA,
    ),
)
