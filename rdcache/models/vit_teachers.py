"""Vision transformers with published medical weights, and DINOv3, all built by timm.

Radiographs (RAD-DINO), figures with captions (BiomedCLIP), histology (UNI 2, Virchow 2), retinas
(RETFound).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import timm
import torch
from timm.layers import SwiGLUPacked
from torch import nn

from rdcache.models.cards import TeacherEntry
from rdcache.models.preprocessing import CLIP_MEAN, CLIP_STD, Preprocessing
from rdcache.models.taps import TapNetwork
from rdcache.models.timm_taps import TimmTaps
from rdcache.models.weight_files import Tensors, without_prefix

GATED = "ask for access there, then put the file where it is looked for"


class ProjectedTaps(TimmTaps):
    """A ViT whose `pooled` is its class token in the space that images and texts share."""

    def __init__(self, model: Any, width: int) -> None:
        super().__init__(model)
        self.projection = nn.Linear(model.embed_dim, width, bias=False)

    @property
    def backbone(self) -> Any:
        """The ViT and the projection, both from the file."""
        return nn.ModuleDict({"trunk": self.model, "head": self.projection})

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`."""
        for name, value in super().taps(images):
            yield name, self.projection(value) if name == "pooled" else value


class ClassAndMeanTaps(TimmTaps):
    """A ViT whose `pooled` is its class token and the mean of its patch tokens, side by side."""

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`."""
        final, maps = self.model.forward_intermediates(
            images, indices=list(self.depths.values()), output_fmt="NCHW"
        )
        yield from zip(self.depths, maps, strict=True)
        yield "tokens", maps[-1].flatten(2).transpose(1, 2)
        patches = final[:, self.model.num_prefix_tokens :]
        yield "pooled", torch.cat([final[:, 0], patches.mean(1)], 1)


def build_biomedclip() -> TapNetwork:
    """ViT-B/16 and the projection of its class token to 512 numbers."""
    return ProjectedTaps(timm.create_model("vit_base_patch16_224", num_classes=0), 512)


def rename_open_clip(tensors: Tensors) -> Tensors:
    """The image tower of an OpenCLIP file: `visual.trunk.` is timm's, `visual.head.proj` linear."""
    tower = {name: value for name, value in tensors.items() if name.startswith("visual.")}
    return {
        name.removeprefix("visual.").replace("head.proj.", "head."): value
        for name, value in (tower or tensors).items()
    }


def rename_dinov2(tensors: Tensors) -> Tensors:
    """Hugging Face's Dinov2Model in timm's names, with query, key and value in one tensor."""
    names = {
        "embeddings.cls_token": "cls_token",
        "embeddings.position_embeddings": "pos_embed",
        "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
        "layernorm.weight": "norm.weight",
        "layernorm.bias": "norm.bias",
    }
    parts = {
        "attention.output.dense": "attn.proj",
        "layer_scale1.lambda1": "ls1.gamma",
        "layer_scale2.lambda1": "ls2.gamma",
    }
    renamed = {}
    tensors = without_prefix(tensors, "model.")
    for name, value in tensors.items():
        block = re.fullmatch(r"encoder\.layer\.(\d+)\.(.+)", name)
        if block is None:
            renamed[names.get(name, name)] = value
            continue
        inside = block[2]
        query = re.fullmatch(r"attention\.attention\.query\.(weight|bias)", inside)
        if query:
            rest = (name.replace("query", each) for each in ("key", "value"))
            triple = [value, *(tensors[each] for each in rest if each in tensors)]
            renamed[f"blocks.{block[1]}.attn.qkv.{query[1]}"] = torch.cat(triple)
        elif not inside.startswith("attention.attention."):
            for old, new in parts.items():
                inside = inside.replace(old, new)
            renamed[f"blocks.{block[1]}.{inside}"] = value
    return renamed


def rename_plain(tensors: Tensors) -> Tensors:
    """timm's names already, perhaps after those of parallel training."""
    return without_prefix(tensors, "module.", "model.")


def build_uni2() -> TapNetwork:
    """ViT-H/14 with eight registers, as the model's card builds it."""
    return TimmTaps(
        timm.create_model(
            "vit_giant_patch14_224",
            img_size=224,
            depth=24,
            num_heads=24,
            init_values=1e-5,
            embed_dim=1536,
            mlp_ratio=2.66667 * 2,
            num_classes=0,
            no_embed_class=True,
            mlp_layer=SwiGLUPacked,
            act_layer=nn.SiLU,
            reg_tokens=8,
            dynamic_img_size=True,
        )
    )


def build_virchow2() -> TapNetwork:
    """ViT-H/14 with four registers, as the model's configuration on the hub says."""
    return ClassAndMeanTaps(
        timm.create_model(
            "vit_huge_patch14_224",
            img_size=224,
            init_values=1e-5,
            num_classes=0,
            mlp_ratio=5.3375,
            global_pool="",
            mlp_layer=SwiGLUPacked,
            act_layer=nn.SiLU,
            reg_tokens=4,
            dynamic_img_size=True,
        )
    )


def _built(name: str, **options: Any) -> Callable[[], TapNetwork]:
    return lambda: TimmTaps(timm.create_model(name, num_classes=0, **options))


def _shapes(width: int, side: int, pooled: int | None = None) -> dict[str, tuple[int, ...]]:
    return {
        **{f"s{quarter}": (width, side, side) for quarter in (1, 2, 3, 4)},
        "tokens": (side**2, width),
        "pooled": (pooled or width,),
    }


_entry = partial(TeacherEntry, rename=rename_plain)
ENTRIES = (
    _entry(
        name="biomedclip",
        title="BiomedCLIP image tower, ViT-B/16 on figures of PubMed Central",
        architecture="timm/vit_base_patch16_224-projected-512",
        build=build_biomedclip,
        rename=rename_open_clip,
        shapes=_shapes(768, 14, 512),
        preprocessing=Preprocessing(mean=CLIP_MEAN, std=CLIP_STD, interpolation="bicubic"),
        licence="MIT",
        source="the Hugging Face hub, microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        file="open_clip_pytorch_model.bin",
        corpora=frozenset({"pmc-15m"}),
    ),
    _entry(
        name="rad-dino",
        title="RAD-DINO, DINOv2 ViT-B/14 on chest radiographs, 518 px",
        architecture="timm/vit_base_patch14_dinov2",
        build=_built("vit_base_patch14_dinov2"),
        rename=rename_dinov2,
        shapes=_shapes(768, 37),
        preprocessing=Preprocessing(518, (0.5307,) * 3, (0.2583,) * 3, interpolation="bicubic"),
        licence="MIT",
        source="the Hugging Face hub, microsoft/rad-dino",
        file="model.safetensors",
        corpora=frozenset({"mimic-cxr", "chexpert", "nih-cxr", "padchest", "brax"}),
    ),
    _entry(
        name="uni2",
        title="UNI 2-h, ViT-H/14 on histology",
        architecture="timm/vit_giant_patch14_224-uni2",
        build=build_uni2,
        shapes=_shapes(1536, 16),
        preprocessing=Preprocessing(),
        licence="CC-BY-NC-ND-4.0, gated",
        source=f"the Hugging Face hub, MahmoodLab/UNI2-h: {GATED}",
        file="pytorch_model.bin",
        corpora=frozenset({"mass-100k"}),
    ),
    _entry(
        name="virchow2",
        title="Virchow 2, ViT-H/14 on histology",
        architecture="timm/vit_huge_patch14_224-virchow2",
        build=build_virchow2,
        shapes=_shapes(1280, 16, 2560),
        preprocessing=Preprocessing(interpolation="bicubic"),
        licence="CC-BY-NC-ND-4.0, gated",
        source=f"the Hugging Face hub, paige-ai/Virchow2: {GATED}",
        file="pytorch_model.bin",
        corpora=frozenset({"mskcc"}),
    ),
    _entry(
        name="retfound",
        title="RETFound, ViT-L/16 on colour fundus photographs (masked autoencoder)",
        architecture="timm/vit_large_patch16_224-mean",
        # The mean of the patch tokens, after the encoder's own norm.
        build=_built("vit_large_patch16_224", global_pool="avg", fc_norm=False),
        shapes=_shapes(1024, 14),
        preprocessing=Preprocessing(interpolation="bicubic"),
        licence="CC-BY-NC-4.0, gated",
        source=f"the links in the README of github.com/rmaphoh/RETFound_MAE: {GATED}",
        file="RETFound_mae_natureCFP.pth",
        corpora=frozenset({"eyepacs", "aptos"}),
    ),
    _entry(
        name="dinov3",
        title="DINOv3 ViT-B/16 on LVD-1689M, natural images",
        architecture="timm/vit_base_patch16_dinov3",
        build=_built("vit_base_patch16_dinov3"),
        shapes=_shapes(768, 16),
        preprocessing=Preprocessing(256, interpolation="bicubic"),
        licence="DINOv3 licence",
        source="the Hugging Face hub, timm/vit_base_patch16_dinov3.lvd1689m (or as "
        "timm:vit_base_patch16_dinov3.lvd1689m, which downloads it)",
        file="model.safetensors",
    ),
)
