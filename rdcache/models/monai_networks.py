"""Encoders that MONAI builds, with their levels as taps: SegResNet's two, and Swin UNETR's.

MONAI takes long to import and is imported when a network is built.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from rdcache.models.volume_networks import LevelTaps
from rdcache.models.volume_students import monai_networks

# Which of eight neighbours are joined, by their places along z, y, x. MONAI changed the second half
# without another name for it or for the weights: here it does not depend on the MONAI installed.
FIRST = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
NEIGHBOURS = (*FIRST, (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
DUPLICATES = (*FIRST, (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1))


class SegResEncoderTaps(LevelTaps):
    """MONAI's SegResEncoder: residual blocks, then a convolution with stride 2, five times."""

    def __init__(self, filters: int = 32, blocks: tuple[int, ...] = (1, 2, 2, 4, 4)) -> None:
        nets = monai_networks("segresnet_ds")
        model = nets.SegResEncoder(spatial_dims=3, init_filters=filters, blocks_down=blocks)
        super().__init__(model, [2**level for level in range(len(blocks))])

    def levels(self, volumes: torch.Tensor) -> Iterator[torch.Tensor]:
        """See `LevelTaps.levels`."""
        x = self.model.conv_init(volumes)
        for number, level in enumerate(self.model.layers):
            # Activations work in place: a map that is kept must not be the next one's input.
            x = level["blocks"](x)
            yield x.clone() if number + 1 < len(self.model.layers) else x
            x = level["downsample"](x)


class SegResNetTaps(LevelTaps):
    """The encoder of MONAI's SegResNet; the decoder is left out."""

    def __init__(
        self, filters: int = 16, channels: int = 1, blocks: tuple[int, ...] = (1, 2, 2, 4)
    ) -> None:
        nets = monai_networks("segresnet")
        whole = nets.SegResNet(
            init_filters=filters, in_channels=channels, blocks_down=blocks, dropout_prob=0.0
        )
        encoder = nn.ModuleDict({"convInit": whole.convInit, "down_layers": whole.down_layers})
        super().__init__(encoder, [2**level for level in range(len(blocks))])

    def levels(self, volumes: torch.Tensor) -> Iterator[torch.Tensor]:
        """See `LevelTaps.levels`."""
        x = self.model["convInit"](volumes)
        for down in self.model["down_layers"]:
            x = down(x)
            yield x


class SwinTaps(LevelTaps):
    """The Swin transformer of MONAI's Swin UNETR; the convolutions around it are left out.

    Args:
        duplicates: whether neighbours are merged as in MONAI up to 1.4, where two of the eight are
            taken twice and two are left out. Weights that were trained so need it.
    """

    def __init__(self, width: int = 48, channels: int = 1, *, duplicates: bool = False) -> None:
        nets = monai_networks("swin_unetr")
        model = nets.SwinTransformer(
            in_chans=channels,
            embed_dim=width,
            window_size=(7, 7, 7),
            patch_size=(2, 2, 2),
            depths=(2, 2, 2, 2),
            num_heads=(3, 6, 12, 24),
            downsample=_merging(nets, DUPLICATES if duplicates else NEIGHBOURS),
        )
        super().__init__(model, (2, 4, 8, 16, 32))

    @property
    def _nets(self) -> Any:
        return monai_networks("swin_unetr")

    def levels(self, volumes: torch.Tensor) -> Iterator[torch.Tensor]:
        """See `LevelTaps.levels`; each level is normalised without parameters, as it is used.

        MONAI's own forward pass does the same, but needs the package einops.
        """
        x = self.model.patch_embed(volumes).movedim(1, -1)
        yield _normalised(x)
        for number in (1, 2, 3, 4):
            (layer,) = getattr(self.model, f"layers{number}")
            x = self._through(layer, x)
            yield _normalised(x)

    def _through(self, layer: Any, x: torch.Tensor) -> torch.Tensor:
        """A layer of blocks and the merging behind it: (B, D, H, W, C) → (B, D/2, H/2, W/2, 2C)."""
        sides = tuple(x.shape[1:4])
        window, shift = self._nets.get_window_size(sides, layer.window_size, layer.shift_size)
        padded = [-(-side // by) * by for side, by in zip(sides, window, strict=True)]
        mask = self._nets.compute_mask(padded, window, shift, x.device)
        for block in layer.blocks:
            x = block(x, mask)
        merged: torch.Tensor = layer.downsample(x.view(len(x), *sides, -1))
        return merged


def _normalised(x: torch.Tensor) -> torch.Tensor:
    """(B, D, H, W, C), the channels of each position normalised, as (B, C, D, H, W)."""
    return nn.functional.layer_norm(x, x.shape[-1:]).movedim(-1, 1)


def _merging(nets: Any, neighbours: Sequence[tuple[int, int, int]]) -> Any:
    class Merging(nets.PatchMergingV2):
        """Patch merging of these neighbours, in this order."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """(B, D, H, W, C) → (B, D/2, H/2, W/2, 2C)."""
            parts = [x[:, d::2, h::2, w::2] for d, h, w in neighbours]
            merged: torch.Tensor = self.reduction(self.norm(torch.cat(parts, -1)))
            return merged

    return Merging
