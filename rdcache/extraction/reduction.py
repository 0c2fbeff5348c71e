"""Smaller taps: how each tap is to be kept, as the options say it, and what that makes of a batch.

A map may be pooled to fewer positions, right after the teacher's forward; then channels may be
projected onto fewer, and numbers rounded to int8, as the store's layout has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn import functional as F

from rdcache.errors import UnknownNameError, UsageError
from rdcache.extraction.config import ExtractConfig
from rdcache.store import TapSpec
from rdcache.store.projection import Projection
from rdcache.store.quantisation import quantised
from rdcache.store.spec import CODECS, DTYPES

MAPS = ("map2d", "map3d")
MOST_CHANNELS = 8192  # a basis is found from a matrix of channels × channels


@dataclass(frozen=True)
class KeptTap:
    """A tap as the teacher gives it and as it is kept.

    Attributes:
        whole: all of it, in float32.
        kept: as it is to be stored.
        pool: positions along each axis of a pooled map.
    """

    whole: TapSpec
    kept: TapSpec
    pool: tuple[int, ...] | None = None

    @property
    def reduced(self) -> bool:
        """Whether numbers are lost beyond the rounding of a float."""
        return self.kept.shape != self.whole.shape or self.kept.dtype == "int8"

    def restore(self, values: torch.Tensor, projection: Projection | None) -> torch.Tensor:
        """As near as it gets to what the teacher gave: float32 (B, *whole).

        Every position of a map gets the mean of the pooled position that is nearest.

        Args:
            values: (B, *kept), of int8 taps in float32 again.
        """
        values = values.float()
        if projection is not None:
            values = projection.restore(values, self.kept)
        if self.pool is not None:
            values = F.interpolate(values, self.whole.shape[1:], mode="nearest")
        return values


def kept_taps(config: ExtractConfig, taps: Sequence[TapSpec]) -> tuple[KeptTap, ...]:
    """What the options make of the teacher's taps.

    Raises:
        UnknownNameError: an option names a tap that is not kept.
        UsageError: an option makes no sense for its tap.
    """
    names = [tap.name for tap in taps]
    dtypes = _chosen("--dtype", config.dtype, names, tuple(DTYPES), "float16")
    codecs = _chosen("--codec", config.codec, names, CODECS, "none")
    pools = _named("--pool", config.pool, names)
    channels = _named("--project", config.project, names)
    kept = []
    for tap in taps:
        pool = _pool(tap, pools[tap.name]) if tap.name in pools else None
        small = tap if pool is None else replace(tap, shape=(tap.shape[0], *pool))
        if tap.name in channels:
            small = _projected(small, channels[tap.name])
        small = replace(small, dtype=dtypes[tap.name], codec=codecs[tap.name])
        kept.append(KeptTap(replace(tap, dtype="float32"), small, pool))
    return tuple(kept)


def deciding_parts(kept: Sequence[KeptTap]) -> dict[str, object]:
    """Parts of the fingerprint that say how taps are kept. Where nothing is pooled or projected
    they are only the dtype; the codec changes no number and is no part.
    """
    dtypes = {it.kept.name: it.kept.dtype for it in kept}
    parts: dict[str, object] = {
        "dtype": kept[0].kept.dtype if len(set(dtypes.values())) == 1 else dtypes
    }
    if pools := {it.kept.name: "x".join(map(str, it.pool)) for it in kept if it.pool is not None}:
        parts["pool"] = pools
    projected = [it.kept for it in kept if it.kept.projected_from is not None]
    if channels := {tap.name: tap.shape[tap.channel_axis] for tap in projected}:
        parts["project"] = channels
    return parts


def pooled(values: torch.Tensor, pool: tuple[int, ...] | None) -> torch.Tensor:
    """A map (B, C, …) at fewer positions, each the mean of its part of the map."""
    if pool is None:
        return values
    average: Any = F.adaptive_avg_pool2d if len(pool) == 2 else F.adaptive_avg_pool3d
    result: torch.Tensor = average(values, pool)
    return result


def as_laid_out(
    outputs: Mapping[str, torch.Tensor],
    taps: Sequence[TapSpec],
    projections: Mapping[str, Projection],
) -> dict[str, torch.Tensor]:
    """A batch of pooled float32 taps, projected and rounded to int8 where a store's taps are so."""
    projected = {
        tap.name: projections[tap.name].project(outputs[tap.name], tap)
        for tap in taps
        if tap.projected_from is not None
    }
    return quantised({**outputs, **projected}, taps)


def _chosen(
    flag: str, given: Sequence[str], names: Sequence[str], allowed: Sequence[str], default: str
) -> dict[str, str]:
    """One value for each tap: its own, else the one for all, else the default."""
    general = [word for word in given if "=" not in word]
    if len(general) > 1:
        raise UsageError(f"{flag} takes one value for all taps.", given=",".join(given))
    own = _named(flag, [word for word in given if "=" in word], names)
    chosen = {**dict.fromkeys(names, general[0] if general else default), **own}
    if wrong := sorted(set(chosen.values()) - set(allowed)):
        raise UsageError(f"{flag} is one of {', '.join(allowed)}.", given=", ".join(wrong))
    return chosen


def _named(flag: str, given: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """`s4=4` for each tap that is named."""
    values: dict[str, str] = {}
    for word in given:
        name, _, value = (part.strip() for part in word.partition("="))
        if not value or name in values:
            raise UsageError(f"{flag} is given as TAP=VALUE, each tap once.", given=word)
        if name not in names:
            raise UnknownNameError.of("tap in this extraction", name, names)
        values[name] = value
    return values


def _pool(tap: TapSpec, text: str) -> tuple[int, ...]:
    """`4` or `4x6` as positions along each axis of a map."""
    if tap.kind not in MAPS:
        raise UsageError(f"{tap.name} cannot be pooled: it is no map.", kind=tap.kind)
    axes = len(tap.shape) - 1
    sides = text.lower().replace("×", "x").split("x")
    sides = sides * axes if len(sides) == 1 else sides
    pool = tuple(int(side) if side.isascii() and side.isdigit() else 0 for side in sides)
    fits = len(pool) == axes and all(
        1 <= small <= large for small, large in zip(pool, tap.shape[1:], strict=True)
    )
    if not fits or pool == tap.shape[1:]:
        raise UsageError(
            f"{tap.name} is pooled to fewer positions than it has, as in --pool {tap.name}="
            + "x".join(str(max(1, side // 2)) for side in tap.shape[1:]),
            given=text,
            has="×".join(map(str, tap.shape[1:])),
        )
    return pool


def _projected(tap: TapSpec, text: str) -> TapSpec:
    """The tap with fewer channels."""
    if tap.kind == "logits":
        raise UsageError(f"{tap.name} cannot be projected: its numbers are those of the classes.")
    before, channels = tap.shape[tap.channel_axis], int(text) if text.isdecimal() else 0
    if not 0 < channels < before or before > MOST_CHANNELS:
        raise UsageError(
            f"{tap.name} is projected to fewer channels than it has, which are at most "
            f"{MOST_CHANNELS}.",
            given=text,
            has=before,
        )
    shape = list(tap.shape)
    shape[tap.channel_axis] = channels
    return replace(tap, shape=tuple(shape), projected_from=before)
