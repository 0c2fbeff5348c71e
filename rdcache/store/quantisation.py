"""Taps as int8: each channel of each sample in 127 steps of its own largest magnitude.

Symmetric, so that zero stays zero. The scales are a tap of their own, `<tap>.scale`, which any Zarr
reader can multiply with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from rdcache.store.spec import TapSpec

LEVELS = 127
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # below it float32 has no full precision


def quantise(values: torch.Tensor, tap: TapSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to int8, half to even.

    Args:
        values: float32 (B, *tap); samples with NaN or Inf get a scale that is not finite.
        tap: one of dtype int8.

    Returns:
        int8 (B, *tap) in −127…127, and float32 (B, *tap.scales). Where a channel is zero, or of no
        larger magnitude than 127 times the smallest normal float32, so is its scale.
    """
    grouped = _by_channel(values, tap)
    scales = grouped.abs().amax(-1) / LEVELS
    scales = torch.where(scales < SMALLEST_SCALE, torch.zeros_like(scales), scales)
    steps = torch.where(scales > 0, scales, torch.ones_like(scales))[..., None]
    rounded = torch.where(scales[..., None] > 0, grouped / steps, torch.zeros_like(grouped))
    rounded = rounded.nan_to_num(0.0).round().clamp(-LEVELS, LEVELS).to(torch.int8)
    return _as_tap(rounded, tap), scales


def dequantise(
    values: torch.Tensor, scales: torch.Tensor, tap: TapSpec, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Back to float32: (B, *tap), within half a step of what was quantised.

    Args:
        out: where to, float32 (B, *tap), contiguous.
    """
    result = torch.empty_like(values, dtype=torch.float32) if out is None else out
    torch.mul(_by_channel(values, tap), scales[..., None], out=_by_channel(result, tap))
    return result


def with_scales(taps: Iterable[TapSpec]) -> tuple[TapSpec, ...]:
    """The taps as a store lays them out: each int8 tap followed by its scales."""
    return tuple(it for tap in taps for it in (tap, tap.scales) if it is not None)


def quantised(
    batch: Mapping[str, torch.Tensor], taps: Iterable[TapSpec]
) -> dict[str, torch.Tensor]:
    """A batch of float32 taps, those of dtype int8 rounded and with their scales beside them."""
    result = dict(batch)
    for tap in taps:
        if tap.scales is not None:
            result[tap.name], result[tap.scales.name] = quantise(batch[tap.name], tap)
    return result


def _by_channel(values: torch.Tensor, tap: TapSpec) -> torch.Tensor:
    """(B, *tap) as (B, groups of one scale, numbers)."""
    if tap.kind == "tokens":
        return values.transpose(1, 2)
    return values.flatten(2) if values.ndim > 2 else values[:, None]


def _as_tap(grouped: torch.Tensor, tap: TapSpec) -> torch.Tensor:
    if tap.kind == "tokens":
        return grouped.transpose(1, 2).contiguous()
    return grouped.reshape(len(grouped), *tap.shape)
