"""Segment Anything's descendants for medical images, by timm's SAM ViT-B: MedSAM and SAM-Med2D.

Of SAM only the image encoder is used: no prompt is needed to read its maps.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import timm
import torch
from torch import nn

from rdcache.models.cards import TeacherEntry
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.taps import TapNetwork
from rdcache.models.timm_taps import TimmTaps
from rdcache.models.weight_files import Tensors, without_prefix

ENCODER = "image_encoder."


class SamTaps(TimmTaps):
    """`s1`…`s4` and `tokens` as of any ViT, and `neck`: the image embedding that SAM's decoder
    reads, whose mean is `pooled`.
    """

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`."""
        neck, maps = self.model.forward_intermediates(images, indices=list(self.depths.values()))
        yield from zip(self.depths, maps, strict=True)
        yield "tokens", maps[-1].flatten(2).transpose(1, 2)
        yield "neck", neck
        yield "pooled", neck.mean((2, 3))


class Adapter(nn.Module):
    """SAM-Med2D's adapter beside a block's MLP: channels weighed by their mean, then a convolution
    to half the positions and back, a shortcut and a norm.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        hidden = width // 4
        self.channel = nn.Sequential(
            nn.Linear(width, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, width, bias=False),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, 3, 2, 1, bias=False),
            nn.ReLU(),
            nn.ConvTranspose2d(width, width, 4, 2, 1, bias=False),
            nn.ReLU(),
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N², C) → the same."""
        side = math.isqrt(tokens.shape[1])
        x = tokens.transpose(1, 2).unflatten(2, (side, side))
        weighed = self.channel(x.mean((2, 3)))[:, :, None, None] * x
        x = x + self.spatial(weighed)
        return self.norm(x.flatten(2).transpose(1, 2))


class MlpWithAdapter(nn.Module):
    """Both see the normalised tokens, and what they give is added."""

    def __init__(self, mlp: nn.Module, width: int) -> None:
        super().__init__()
        self.mlp = mlp
        self.adapter = Adapter(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, N², C) → the same."""
        return self.mlp(tokens) + self.adapter(tokens)


def build_medsam() -> TapNetwork:
    """timm's SAM ViT-B for 1024 px, with its neck."""
    return SamTaps(timm.create_model("samvit_base_patch16", num_classes=0))


def build_sam_med2d() -> TapNetwork:
    """The same for 256 px, with an adapter in every block."""
    model: Any = timm.create_model("samvit_base_patch16", num_classes=0, img_size=256)
    for block in model.blocks:
        block.mlp = MlpWithAdapter(block.mlp, model.embed_dim)
    return SamTaps(model)


def rename(tensors: Tensors) -> Tensors:
    """SAM's image encoder in timm's names; the rest of SAM is left out."""
    tensors = without_prefix(tensors, "module.")
    inside = {name: value for name, value in tensors.items() if name.startswith(ENCODER)}
    return {
        re.sub(r"\.mlp\.lin(\d)\.", r".mlp.fc\1.", name): value
        for name, value in without_prefix(inside or tensors, ENCODER).items()
    }


def rename_with_adapters(tensors: Tensors) -> Tensors:
    """As `rename`, with the adapters where `build_sam_med2d` puts them."""
    return {
        name.replace(".mlp.fc", ".mlp.mlp.fc").replace(".Adapter.", ".mlp.adapter."): value
        for name, value in rename(tensors).items()
    }


def without_adapters(tensors: Tensors) -> str:
    """Recognise SAM-Med2D's other file, and SAM itself."""
    if any(".Adapter." in name for name in tensors):
        return ""
    return "a SAM encoder without adapters"


def with_adapters(tensors: Tensors) -> str:
    """Recognise SAM-Med2D in place of MedSAM."""
    return "" if without_adapters(tensors) else "a SAM encoder with adapters, as SAM-Med2D has them"


def _shapes(side: int) -> dict[str, tuple[int, ...]]:
    return {
        **{f"s{quarter}": (768, side, side) for quarter in (1, 2, 3, 4)},
        "tokens": (side**2, 768),
        "neck": (256, side, side),
        "pooled": (256,),
    }


ENTRIES = (
    TeacherEntry(
        name="medsam",
        title="MedSAM image encoder (SAM ViT-B) at 1024 px",
        architecture="timm/samvit_base_patch16",
        build=build_medsam,
        rename=rename,
        foreign=with_adapters,
        shapes=_shapes(64),
        # Each image is stretched from its darkest to its brightest value; no mean, no deviation.
        preprocessing=Preprocessing(
            1024, (0.0,) * 3, (1.0,) * 3, interpolation="bicubic", scaling="minmax"
        ),
        licence="Apache-2.0",
        source="the links in the README of github.com/bowang-lab/MedSAM",
        file="medsam_vit_b.pth",
        # Its paper lists public sets of many modalities, among them these.
        corpora=frozenset(
            {
                *("isic", "kvasir", "msd", "brats", "amos", "totalsegmentator", "kits", "lits"),
                *("busi", "covidx-ct", "chaos", "word"),
            }
        ),
    ),
    TeacherEntry(
        name="sam-med2d",
        title="SAM-Med2D image encoder (SAM ViT-B with adapters) at 256 px",
        architecture="timm/samvit_base_patch16-256-with-adapters",
        build=build_sam_med2d,
        rename=rename_with_adapters,
        foreign=without_adapters,
        shapes=_shapes(16),
        preprocessing=Preprocessing(256),
        licence="Apache-2.0",
        source="the links in the README of github.com/OpenGVLab/SAM-Med2D",
        file="sam-med2d_b.pth",
        corpora=frozenset({"isic", "kvasir", "msd", "brats", "amos", "kits", "lits", "busi"}),
    ),
)
