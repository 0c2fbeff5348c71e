"""A vision transformer taken apart: embedding, blocks in two halves, pooling.

Adapters add tokens to a block's attention, or numbers to its projections; timm's own forward passes
have no place for that. A `Tower` gives plain ViTs and SAM's windowed encoder (LVM-Med) one face.
With nothing added it computes what timm computes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed_nhwc
from timm.models import vision_transformer as vit
from timm.models import vision_transformer_sam as sam
from torch import nn

Change = Callable[[torch.Tensor], torch.Tensor]
Projected = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # (B, heads, N, D / heads) each
Project = Callable[[torch.Tensor], Projected]


class Grid(NamedTuple):
    """How many patches there are, down and across."""

    rows: int
    columns: int


class Tower(ABC):
    """A transformer's parts, by what they do. Holds no tensors of its own.

    Tokens are (B, N, D): class and register tokens first (`prefix`), then the patches row by row,
    then the tokens that an adapter has added, if any.

    Attributes:
        model: the timm network.
        blocks: its blocks.
        width: D.
        features: how many numbers `pooled` has.
        prefix: how many tokens stand before the patches.
        patch_values: numbers in a patch, 3·16·16 of 16 px, which some initialisations go by.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks: list[Any] = list(model.blocks)
        self.width: int = model.embed_dim
        self.features: int = model.head_hidden_size
        self.prefix: int = getattr(model, "num_prefix_tokens", 0)
        self.patch_values: int = model.patch_embed.proj.weight[0].numel()

    @abstractmethod
    def embed(self, images: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        """The tokens that the first block gets, and the grid of the patches."""

    @abstractmethod
    def pooled(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """(B, F): what the network recommends as its embedding, from the last block's tokens."""

    def attend(
        self,
        number: int,
        tokens: torch.Tensor,
        grid: Grid,
        keys: int | None = None,
        change: Change | None = None,
    ) -> torch.Tensor:
        """The first half of a block: tokens plus what attention gives them.

        Args:
            number: of the block.
            keys: only the first so many tokens are looked at; all of them look (default: all).
            change: of normed tokens (…, D), added to their queries, keys and values (…, 3·D).
        """
        block = self.blocks[number]

        def project(normed: torch.Tensor) -> Projected:
            query, key, value = _projected(block.attn, normed, change)
            return query, key[:, :, :keys], value[:, :, :keys]

        mixed = self._mixed(block, block.norm1(tokens), grid, project)
        return tokens + block.drop_path1(block.ls1(mixed))

    @abstractmethod
    def _mixed(
        self, block: Any, normed: torch.Tensor, grid: Grid, project: Project
    ) -> torch.Tensor:
        """What a block's attention gives to normed tokens (B, N, D).

        Args:
            project: queries, keys and values of tokens.
        """

    def transform(self, number: int, tokens: torch.Tensor) -> torch.Tensor:
        """The second half of a block: tokens plus what the MLP gives them."""
        block = self.blocks[number]
        return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))

    def as_map(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """The patches among the tokens as (B, D, rows, columns)."""
        patches = tokens[:, self.prefix : self.prefix + grid.rows * grid.columns]
        return patches.transpose(1, 2).unflatten(2, tuple(grid)).contiguous()


class PlainTower(Tower):
    """timm's ViT with global attention: positions are added to the patches once, at the start."""

    def embed(self, images: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        """See `Tower.embed`."""
        model = self.model
        grid = Grid(*model.patch_embed.dynamic_feat_size(tuple(images.shape[-2:])))
        tokens = model._pos_embed(model.patch_embed(images))
        return model.norm_pre(model.patch_drop(tokens)), grid

    def pooled(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """See `Tower.pooled`."""
        return self.model.forward_head(self.model.norm(tokens), pre_logits=True).flatten(1)

    def _mixed(
        self, block: Any, normed: torch.Tensor, grid: Grid, project: Project
    ) -> torch.Tensor:
        attention = block.attn
        mixed = F.scaled_dot_product_attention(*project(normed))
        mixed = attention.norm(mixed.transpose(1, 2).flatten(2))
        return attention.proj_drop(attention.proj(mixed))


class WindowedTower(Tower):
    """timm's SAM encoder: relative positions in every block, windows in most, no class token.

    Tokens that an adapter adds have no position: their relative position to any other is 0. They
    belong to no window either, so that a block with several windows cannot take them.
    """

    @property
    def single_window(self) -> bool:
        """Whether every block looks at the whole image of the size that the network is for."""
        grid = tuple(self.model.patch_embed.grid_size)
        return all(b.window_size == 0 or grid == (b.window_size,) * 2 for b in self.blocks)

    def embed(self, images: torch.Tensor) -> tuple[torch.Tensor, Grid]:
        """See `Tower.embed`."""
        model = self.model
        patches = model.patch_embed(images)  # (B, rows, columns, D)
        grid = Grid(*patches.shape[1:3])
        if model.pos_embed is not None:
            patches = patches + resample_abs_pos_embed_nhwc(model.pos_embed, list(grid))
        return model.norm_pre(model.patch_drop(model.pos_drop(patches))).flatten(1, 2), grid

    def pooled(self, tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
        """See `Tower.pooled`."""
        final = self.model.neck(self.as_map(tokens, grid))
        return self.model.forward_head(final, pre_logits=True).flatten(1)

    def _mixed(
        self, block: Any, normed: torch.Tensor, grid: Grid, project: Project
    ) -> torch.Tensor:
        size = block.window_size
        if not size or tuple(grid) == (size, size):
            return self._within(block.attn, normed, grid, project)
        patches, padded = sam.window_partition(normed.unflatten(1, tuple(grid)), size)
        mixed = self._within(block.attn, patches.flatten(1, 2), Grid(size, size), project)
        mixed = mixed.unflatten(1, (size, size))
        return sam.window_unpartition(mixed, size, grid, padded).flatten(1, 2)

    def _within(
        self, attention: Any, tokens: torch.Tensor, grid: Grid, project: Project
    ) -> torch.Tensor:
        """Attention within one window, or over the whole grid."""
        query, key, value = project(tokens)
        bias = None
        if attention.use_rel_pos:
            patches = grid.rows * grid.columns
            own = query[:, :, :patches].flatten(0, 1)
            bias = sam.get_decomposed_rel_pos_bias(
                own, attention.rel_pos_h, attention.rel_pos_w, grid, grid
            )
            bias = bias.unflatten(0, query.shape[:2])
            bias = F.pad(bias, (0, key.shape[2] - patches, 0, query.shape[2] - patches))
            bias = bias.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return attention.proj_drop(attention.proj(mixed.transpose(1, 2).flatten(2)))


def _projected(attention: Any, tokens: torch.Tensor, change: Change | None) -> Projected:
    """Queries, keys and values of normed tokens."""
    joined = attention.qkv(tokens)
    if change is not None:
        joined = joined + change(tokens)
    parts = joined.unflatten(2, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    query, key, value = parts.unbind(0)
    return attention.q_norm(query), attention.k_norm(key), value


def tower_of(model: nn.Module) -> Tower | None:
    """The tower of a timm network; None if its blocks are not of the kind that is taken apart."""
    if isinstance(model, vit.VisionTransformer) and all(_is_plain(b) for b in model.blocks):
        return PlainTower(model)
    if isinstance(model, sam.VisionTransformerSAM) and all(
        type(block) is sam.Block and block.attn.rope is None for block in model.blocks
    ):
        return WindowedTower(model)
    return None


def _is_plain(block: nn.Module) -> bool:
    """Whether a block is attention and MLP, one after the other, each with its norm before it."""
    attention: Any = getattr(block, "attn", None)
    return (
        type(block) is vit.Block
        and type(attention) is vit.Attention
        and getattr(attention, "gate", None) is None
    )
