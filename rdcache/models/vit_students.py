"""Students that are vision transformers: ViT-Tiny as a chain of four stages that are maps.

Its tokens stand in a grid between the stages, so that a teacher's map can take their place.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from rdcache.models.backbones import SegmentedBackbone, Stages
from rdcache.models.decoders import PyramidDecoder
from rdcache.models.student import StudentCard, StudentInput
from rdcache.models.student_recipe import Parts, StudentRecipe
from rdcache.models.timm_teachers import pretrained_timm, untrained_timm
from rdcache.models.weight_files import Tensors

NETWORK = "vit_tiny_patch16_224"
PATCH = 16
WIDTH = 192
STAGES: Stages = {f"s{quarter}": (WIDTH, PATCH) for quarter in (1, 2, 3, 4)}
CARD = StudentCard(
    "vit-tiny", "ViT-Tiny/16 without class token", WIDTH, STAGES, parameters=5_524_032
)


class PatchGrid(nn.Module):
    """Patches as a map: their embeddings, and those of their places resampled to the grid."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.projection = network.patch_embed.proj
        self.positions = network.pos_embed  # (1, 196, 192)
        self.grid = list(network.patch_embed.grid_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Embed images (B, 3, H, W) as (B, 192, H/16, W/16)."""
        x = self.projection(images)
        height, width = x.shape[2:]
        positions = resample_abs_pos_embed(
            self.positions, [height, width], self.grid, num_prefix_tokens=0
        )
        return x + positions.transpose(1, 2).unflatten(2, (height, width))


class TransformerStage(nn.Module):
    """Some blocks of a transformer on the tokens of a map, as a map again."""

    def __init__(self, blocks: Sequence[nn.Module], norm: nn.Module | None = None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.Identity() if norm is None else norm

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Compute (B, C, H, W) from (B, C, H, W)."""
        tokens = maps.flatten(2).transpose(1, 2)  # (B, H·W, C)
        tokens = self.norm(self.blocks(tokens))
        return tokens.transpose(1, 2).unflatten(2, maps.shape[2:])


def vit_tiny() -> StudentRecipe:
    """ViT-Tiny that classifies: its features are the mean over positions of its last map, which
    is normalised as the last tokens are in timm.
    """
    return StudentRecipe(
        card=CARD,
        build=lambda channels: _network(),
        pretrained=_pretrained,
        cut=lambda network: (_backbone(network), None),
        # Those of timm's weights for this network.
        expected=StudentInput(224, (0.5,) * 3, (0.5,) * 3, multiple_of=PATCH),
        rename=without_class_token,
    )


def unet_vit_tiny() -> StudentRecipe:
    """The same with a decoder of a U-Net."""
    classifier = vit_tiny()

    def cut(network: Any) -> Parts:
        return _backbone(network), PyramidDecoder(WIDTH)

    card = replace(
        CARD,
        name="unet-vit-tiny",
        title="U-Net on ViT-Tiny/16",
        parameters=6_223_872,
        task_kind="segmentation",
    )
    return replace(classifier, card=card, cut=cut)


def without_class_token(tensors: Tensors) -> Tensors:
    """Take the class token, and its place among the positions, out of a published state dict."""
    tensors = dict(tensors)
    positions = tensors.get("pos_embed")
    if tensors.pop("cls_token", None) is not None and positions is not None:
        tensors["pos_embed"] = positions[:, 1:]
    return tensors


def _network() -> Any:
    return untrained_timm(
        NETWORK, num_classes=0, class_token=False, global_pool="avg", fc_norm=False
    )


def _pretrained() -> Any:
    """Weights that were trained with a class token are a start without it, too."""
    published = pretrained_timm(NETWORK, num_classes=0)
    network = _network()
    network.load_state_dict(without_class_token(published.state_dict()))
    return network


def _backbone(network: Any) -> SegmentedBackbone:
    blocks = list(network.blocks)
    quarter = len(blocks) // 4
    parts = [blocks[start : start + quarter] for start in range(0, len(blocks), quarter)]
    first, *middle, last = parts
    segments: OrderedDict[str, nn.Module] = OrderedDict(
        s1=nn.Sequential(PatchGrid(network), TransformerStage(first))
    )
    for number, part in enumerate(middle, start=2):
        segments[f"s{number}"] = TransformerStage(part)
    segments["s4"] = TransformerStage(last, network.norm)
    return SegmentedBackbone(segments, STAGES)
