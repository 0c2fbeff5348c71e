"""The taps of any timm network: which intermediate maps are `s1`…`s4`, and what feeds the head.

Building timm networks and finding their weights is left to `timm_teachers.py`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch

from rdcache.models.taps import TapNetwork

PYRAMID_TAPS = {4: "s1", 8: "s2", 16: "s3", 32: "s4"}


class TimmTaps(TapNetwork):
    """Taps of a timm network, found through its `feature_info`.

    In a pyramid (CNNs, Swin) `s1`…`s3` are the last maps at strides 4, 8, 16 and `s4` is the map
    that feeds the head; where that is not the pyramid's last stage (the head of an EfficientNet
    convolves once more), the stage is `s4_pre`. In a network of equal stages (ViT, mixers)
    `s1`…`s4` are the outputs of the blocks at quarter depths, folded to the patch grid without
    class and register tokens, before the final norm; `tokens` is `s4` as a sequence.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model
        strides = _strides(model)
        self.isotropic = len(strides) >= 4 and len(set(strides)) == 1
        self.depths = _quarter_depths(len(strides)) if self.isotropic else _pyramid(strides)
        self.has_logits = getattr(model, "num_classes", 0) > 0

    @property
    def backbone(self) -> Any:
        """The timm network itself, under timm's names."""
        return self.model

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`."""
        if not self.depths:
            final = self.model.forward_features(images)
            maps: list[torch.Tensor] = []
        else:
            final, maps = self.model.forward_intermediates(
                images, indices=list(self.depths.values()), output_fmt="NCHW"
            )
        stages = dict(zip(self.depths, maps, strict=True))
        feeding = None if self.isotropic else self._as_map(final)
        if feeding is not None:
            last = stages.pop("s4", None)
            yield from stages.items()
            if last is not None and last.shape != feeding.shape:
                yield "s4_pre", last
            yield "s4", feeding
        else:
            yield from stages.items()
        if self.isotropic:
            yield "tokens", stages["s4"].flatten(2).transpose(1, 2)
        pooled = self.model.forward_head(final, pre_logits=True)
        yield "pooled", pooled.flatten(1)
        if self.has_logits:
            yield "logits", self.model.forward_head(final)

    def forward(
        self, images: torch.Tensor, names: Collection[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """As `TapNetwork.forward`, but early maps alone stop the network there."""
        if names is not None and not names:
            return {}
        if names is not None and set(names) <= self._early():
            maps = self.model.forward_intermediates(
                images,
                indices=[self.depths[name] for name in sorted(names)],
                output_fmt="NCHW",
                stop_early=True,
                intermediates_only=True,
            )
            found = dict(zip(sorted(names), maps, strict=True))
            return {name: found[name] for name in names}
        return super().forward(images, names)

    def _early(self) -> set[str]:
        """Taps that need no more of the network than the stages up to them."""
        return {name for name in self.depths if self.isotropic or name != "s4"}

    def _as_map(self, final: Any) -> torch.Tensor | None:
        """What feeds the head as (B, C, H, W), or None where it is a sequence or a vector."""
        if not isinstance(final, torch.Tensor) or final.ndim != 4:
            return None
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            final = final.permute(0, 3, 1, 2)
        return final


def _strides(model: Any) -> list[int]:
    """Strides of the stages that `forward_intermediates` can return."""
    info = getattr(model, "feature_info", None)
    if info is None or not hasattr(model, "forward_intermediates"):
        return []
    stages = list(info if isinstance(info, list) else info.info)
    return [stage["reduction"] for stage in stages]


def _quarter_depths(depth: int) -> dict[str, int]:
    """Block numbers of `s1`…`s4`: 2, 5, 8, 11 of twelve."""
    return {f"s{quarter}": depth * quarter // 4 - 1 for quarter in (1, 2, 3, 4)}


def _pyramid(strides: list[int]) -> dict[str, int]:
    """Stage numbers of `s1`…`s4`: the last stage at each of the strides 4, 8, 16, 32."""
    last = {stride: number for number, stride in enumerate(strides)}
    return {PYRAMID_TAPS[stride]: last[stride] for stride in sorted(last) if stride in PYRAMID_TAPS}
