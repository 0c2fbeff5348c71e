"""LVM-Med's ViT: the image encoder of SAM ViT-B at 224 px, without neck and position embedding."""

from __future__ import annotations

import re

import timm
import torch
import torch.nn.functional as F
from torch import nn

from rdcache.models.cards import LVM_MED_CORPORA, TeacherEntry
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.taps import TapNetwork
from rdcache.models.timm_taps import TimmTaps
from rdcache.models.weight_files import Tensors, without_prefix

GRID = 14  # 224 px in patches of 16
REL_POS_LENGTH = 2 * GRID - 1


def build() -> TapNetwork:
    """timm's SAM ViT-B for 224 px, ending with its last block."""
    model = timm.create_model("samvit_base_patch16_224", num_classes=0)
    model.neck = nn.Identity()
    return TimmTaps(model)


def rename(tensors: Tensors) -> Tensors:
    """Take the published names and relative positions to timm's.

    The neck is left out: LVM-Med classifies from the last block's map. Relative positions of the
    global blocks are trained for a grid of 64×64 (127 offsets); for 14×14 the original
    interpolates them to 27 at run time, here it is done once.
    """
    renamed = {}
    for name, value in without_prefix(tensors, "module.", "model.", "image_encoder.").items():
        if name.startswith("neck."):
            continue
        name = re.sub(r"\.mlp\.lin(\d)\.", r".mlp.fc\1.", name)
        renamed[name] = _resized(value) if ".attn.rel_pos_" in name else value
    return renamed


def _resized(positions: torch.Tensor) -> torch.Tensor:
    """Relative positions (offsets, head width) for the grid of 14×14."""
    if positions.ndim != 2 or len(positions) == REL_POS_LENGTH:
        return positions
    return F.interpolate(positions.float().T[None], size=REL_POS_LENGTH, mode="linear")[0].T


def foreign(tensors: Tensors) -> str:
    """Recognise SAM itself and its other descendants, which add absolute positions."""
    if any(name.endswith("pos_embed") for name in tensors):
        return "a SAM encoder with absolute positions (pos_embed), which LVM-Med has not"
    return ""


ENTRIES = (
    TeacherEntry(
        name="lvm-med",
        title="LVM-Med ViT-B (SAM encoder) at 224 px",
        architecture="timm/samvit_base_patch16_224-without-neck",
        build=build,
        rename=rename,
        foreign=foreign,
        shapes={
            "s1": (768, 14, 14),
            "s2": (768, 14, 14),
            "s3": (768, 14, 14),
            "s4": (768, 14, 14),
            "tokens": (196, 768),
            "pooled": (768,),
        },
        preprocessing=Preprocessing(),
        licence="CC-BY-NC-SA-4.0",
        source="the links in the README of github.com/duyhominhnguyen/LVM-Med",
        file="lvmmed_vit.pth",
        corpora=LVM_MED_CORPORA,
    ),
)
