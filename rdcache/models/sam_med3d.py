"""SAM-Med3D's image encoder: a ViT-B over 8×8×8 patches, with windows and relative positions.

The modules bear the names of the published file.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from rdcache.models.cards import TeacherEntry
from rdcache.models.taps import TapNetwork
from rdcache.models.volume_networks import Oriented
from rdcache.models.volume_preprocessing import VolumePreprocessing
from rdcache.models.weight_files import Tensors, without_prefix

PATCH = 16
ENCODER = "image_encoder."
EPS = 1e-6


class Attention(nn.Module):
    """Self-attention over a cube of patches, with relative positions along each axis."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        for axis in "dhw":
            offsets = torch.zeros(2 * side - 1, width // heads)
            self.register_parameter(f"rel_pos_{axis}", nn.Parameter(offsets))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, N, N, C) → the same."""
        batch, side, width = len(x), x.shape[1], x.shape[-1]
        qkv = self.qkv(x).reshape(batch, side**3, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.flatten(1, 2)  # each (B·heads, N³, C/heads)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        scores = (scores.view(-1, *[side] * 6) + self._positions(q, side)).flatten(4).flatten(1, 3)
        mixed = (scores.softmax(-1) @ v).view(batch, self.heads, side**3, -1)
        return self.proj(mixed.transpose(1, 2).reshape(batch, side, side, side, width))

    def _positions(self, q: torch.Tensor, side: int) -> torch.Tensor:
        """What positions add to the scores, as (B·heads, then N for d, h, w of query and of key).

        The authors insert the axes of all three terms at other places than their names suggest:
        what a query has for row k of the first goes to keys whose w is k; what a query at w has for
        row k of the second goes to keys whose d is w and whose w is k, of the third to keys whose h
        is w and whose w is k, both for all w of the query. The published weights were trained so,
        and are of use only so.
        """
        at = torch.arange(side, device=q.device)
        distance = at[:, None] - at[None, :] + side - 1
        grid = q.view(len(q), side, side, side, -1)
        along_d, along_h, along_w = (
            self.get_parameter(f"rel_pos_{axis}")[distance] for axis in "dhw"
        )
        d = torch.einsum("bdhwc,dkc->bdhwk", grid, along_d)
        h = torch.einsum("bdhwc,hkc->bdhwk", grid, along_h)
        w = torch.einsum("bdhwc,wkc->bdhwk", grid, along_w)
        first = d[:, :, :, :, None, None, :]
        return first + h[:, :, :, None, :, None] + w[:, :, :, None, None, :]


class Block(nn.Module):
    """A transformer block; with a window, attention is within cubes of that side.

    Args:
        window: side of the windows; 0 for none.
    """

    def __init__(self, width: int, heads: int, window: int, side: int) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads, window or side)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = nn.ModuleDict(
            {"lin1": nn.Linear(width, 4 * width), "lin2": nn.Linear(4 * width, width)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, N, N, N, C) → the same."""
        y = self.norm1(x)
        x = x + (self._in_windows(y) if self.window else self.attn(y))
        return x + self.mlp["lin2"](F.gelu(self.mlp["lin1"](self.norm2(x))))

    def _in_windows(self, y: torch.Tensor) -> torch.Tensor:
        batch, side, window = len(y), y.shape[1], self.window
        missing = -side % window
        padded = F.pad(y, (0, 0, 0, missing, 0, missing, 0, missing))
        count = (side + missing) // window
        cubes = padded.view(batch, *(n for _ in range(3) for n in (count, window)), -1)
        cubes = cubes.permute(0, 1, 3, 5, 2, 4, 6, 7).flatten(0, 3)
        mixed = self.attn(cubes).view(batch, count, count, count, window, window, window, -1)
        whole = mixed.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(padded.shape)
        return whole[:, :side, :side, :side]


class ChannelNorm(nn.Module):
    """Normalises the channels of each position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, C, D, H, W) → the same."""
        last = x.movedim(1, -1)
        return F.layer_norm(last, self.weight.shape, self.weight, self.bias, EPS).movedim(-1, 1)


class ImageEncoder(TapNetwork):
    """`s1`…`s4` at quarter depths, and `neck`, the image embedding that SAM's decoder reads."""

    def __init__(
        self,
        width: int = 768,
        heads: int = 12,
        depth: int = 12,
        side: int = 8,
        window: int = 14,
        outputs: int = 384,
    ) -> None:
        super().__init__()
        self.taken = {depth * quarter // 4 - 1: f"s{quarter}" for quarter in (1, 2, 3, 4)}
        projection = nn.Conv3d(1, width, PATCH, PATCH)
        self.patch_embed = nn.ModuleDict({"proj": projection})
        self.pos_embed = nn.Parameter(torch.zeros(1, side, side, side, width))
        # Attention is over everything in the blocks at quarter depths: 2, 5, 8, 11 of twelve.
        windows = [0 if number in self.taken else window for number in range(depth)]
        self.blocks = nn.ModuleList(Block(width, heads, each, side) for each in windows)
        self.neck = nn.Sequential(
            nn.Conv3d(width, outputs, 1, bias=False),
            ChannelNorm(outputs),
            nn.Conv3d(outputs, outputs, 3, padding=1, bias=False),
            ChannelNorm(outputs),
        )

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`; of volumes of 16 voxels for each patch of the grid."""
        x = self.patch_embed["proj"](images).movedim(1, -1) + self.pos_embed
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.taken:
                yield self.taken[number], x.movedim(-1, 1)
        neck = self.neck(x.movedim(-1, 1))
        yield "neck", neck
        yield "pooled", neck.mean((2, 3, 4))


def rename(tensors: Tensors) -> Tensors:
    """The image encoder of the published file."""
    tensors = without_prefix(tensors, "module.")
    inside = {name: value for name, value in tensors.items() if name.startswith(ENCODER)}
    return without_prefix(inside or tensors, ENCODER)


ENTRIES = (
    TeacherEntry(
        name="sam-med3d",
        title="SAM-Med3D image encoder (ViT-B), SA-Med3D-140K",
        architecture="sam-med3d/vit-b-128-ras",
        build=lambda: Oriented(ImageEncoder(), "RAS"),
        rename=rename,
        shapes={
            **{f"s{quarter}": (768, 8, 8, 8) for quarter in (1, 2, 3, 4)},
            "neck": (384, 8, 8, 8),
            "pooled": (384,),
        },
        preprocessing=VolumePreprocessing(
            (128, 128, 128), scaling="zscore", divisor=128, spacing=(1.5, 1.5, 1.5)
        ),
        licence="Apache-2.0",
        source="the Hugging Face hub, blueyo0/SAM-Med3D",
        file="sam_med3d_turbo.pth",
        corpora=frozenset({"amos", "totalsegmentator", "btcv", "msd", "flare", "kits", "brats"}),
    ),
)
