"""Mean and standard deviation of each channel of a cached tap over the training samples."""

from __future__ import annotations

import torch

from rdcache.data import CLEAN_VIEW
from rdcache.distillation.subset import EVERYTHING, Subset
from rdcache.methods import ChannelStatistics
from rdcache.store import Store, TapSpec
from rdcache.store.tap_axes import as_maps

SAMPLES_AT_ONCE = 64


def channel_statistics(store: Store, tap: str, subset: Subset = EVERYTHING) -> ChannelStatistics:
    """Read the clean view of the training samples once and describe the tap's channels.

    Positions are those of the tap as methods read it: a class token is none of them. Sums are kept
    in float64. Samples without tensors (NaN or Inf from the teacher) do not count.

    Args:
        subset: which part of the training samples.
    """
    train = subset.of_training(store)
    rows = train[store.available(train, CLEAN_VIEW)]
    spec = store.taps[tap]
    total = torch.zeros(channels_of(spec), dtype=torch.float64)
    squares, count = torch.zeros_like(total), 0
    shift: torch.Tensor | None = None  # near the mean, so that squares do not cancel
    for start in range(0, len(rows), SAMPLES_AT_ONCE):
        samples = rows[start : start + SAMPLES_AT_ONCE].tolist()
        maps = as_maps(store.read(samples, CLEAN_VIEW, [tap])[tap], spec.kind)
        values = maps.movedim(1, 0).flatten(1).double()  # channels, positions
        shift = values.mean(1, keepdim=True) if shift is None else shift
        values = values - shift
        total += values.sum(1)
        squares += values.square().sum(1)
        count += values.shape[1]
    if shift is None:
        return ChannelStatistics(torch.zeros(len(total)), torch.ones(len(total)))
    mean = total / count
    variance = (squares / count - mean.square()).clamp_min(0)
    return ChannelStatistics((mean + shift[:, 0]).float(), variance.sqrt().float())


def channels_of(tap: TapSpec) -> int:
    """How many channels a tap has."""
    return tap.shape[-1] if tap.kind == "tokens" else tap.shape[0]
