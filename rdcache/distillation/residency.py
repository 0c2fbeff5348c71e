"""Where cached taps are during training: read batch by batch, or all at hand, one tensor a tap, in
main memory or on the GPU.

The numbers are the same everywhere, so where they are is a matter of speed alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch

from rdcache.distillation.sampling import Shuffle
from rdcache.distillation.subset import EVERYTHING, Subset
from rdcache.errors import UsageError
from rdcache.memory import available_device_memory, available_memory, memory_limit, sent
from rdcache.store import RemotePath, Store, TapSpec
from rdcache.store.gather import as_stored
from rdcache.store.quantisation import dequantise, with_scales

Resident = Literal["auto", "device", "host", "disk"]
DEVICE_SHARE = 0.5  # of the free memory of a GPU: training needs some too
# Of the main memory that is available: images and cut views may each take as much of what is left.
HOST_SHARE = 0.25
CACHE_SHARE = 0.75  # of all main memory, which the page cache may come to hold
GIB = 2**30


@dataclass(frozen=True)
class Residency:
    """Where taps are, and why.

    Attributes:
        where: `device`, `host`, or `disk`.
        nbytes: what they take there.
    """

    where: Literal["device", "host", "disk"]
    nbytes: int
    why: str

    def __str__(self) -> str:
        return f"{self.where} ({self.nbytes / GIB:.2f} GiB; {self.why})"


def choose_residency(
    store: Store,
    taps: Sequence[str],
    views: int,
    asked: Resident,
    device: torch.device,
    subset: Subset = EVERYTHING,
) -> Residency:
    """Settle where taps are kept.

    What fits half of the GPU's free memory is kept there. Without that, a local store whose tensors
    lie uncompressed on disk is read through its memory map: the page cache holds it once for all
    processes of the machine, and a copy would take as much again. A store in a bucket, or one that
    has to be decompressed, is kept in main memory if it fits a quarter of what is available.

    Args:
        views: how many of the store's views are read.
        subset: and which part of its training samples.

    Raises:
        UsageError: `device` is asked for and there is no GPU.
    """
    kept = int(pairs(store, views, subset).sum())
    needed = sum(tap.nbytes for tap in _stored(store, taps)) * kept
    if asked == "device" and device.type != "cuda":
        raise UsageError("taps are kept on the device only where that is a GPU.", device=device)
    if asked != "auto":
        return Residency(asked, needed, "as asked for")
    if not taps:
        return Residency("disk", 0, "the method reads none")
    if device.type == "cuda":
        free = available_device_memory(device)
        if needed <= DEVICE_SHARE * free:
            return Residency("device", needed, f"{free / GIB:.1f} GiB are free on the GPU")
    costly = _why_reading_costs(store, taps)
    if costly is None:
        return Residency("disk", needed, "mapped files, which all processes of a machine share")
    free = available_memory()
    if needed <= HOST_SHARE * free:
        return Residency("host", needed, f"{costly}; {free / GIB:.1f} GiB of memory are available")
    return Residency("disk", needed, f"only {free / GIB:.1f} GiB of memory are available")


def choose_shuffle(store: Store, taps: Sequence[str], views: int, asked: str) -> Shuffle:
    """Settle the order of an epoch: where it is `auto`, by shards for taps that the page cache
    cannot hold, wherever they are asked to be. That is a matter of all memory, not of what is free
    at the moment: a run that is gone on with must come to the same order.
    """
    if asked != "auto":
        return "shards" if asked == "shards" else "full"
    needed = sum(tap.nbytes for tap in _stored(store, taps)) * int(pairs(store, views).sum())
    return "shards" if needed > CACHE_SHARE * memory_limit() else "full"


def _why_reading_costs(store: Store, taps: Sequence[str]) -> str | None:
    if any(isinstance(member.location, RemotePath) for member in store.members):
        return "the store lies in a bucket"
    if any(tap.codec != "none" for tap in _stored(store, taps)):
        return "they would be decompressed again every epoch"
    return None


class TapSource(Protocol):
    """Gives batches of cached taps."""

    store: Store

    def read(
        self, samples: np.ndarray, views: np.ndarray, taps: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Tap name → (B, *tap) of (sample, view) pairs as they are stored, int8 taps beside their
        scales; see `as_numbers`.

        Raises:
            UsageError: a pair that is not stored.
        """


class ReadTaps:
    """Taps that are read from the store, batch by batch."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def read(
        self, samples: np.ndarray, views: np.ndarray, taps: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Tap name → (B, *tap), on the CPU; see `Store.read_stored`."""
        if not taps:
            return {}
        names = [tap.name for tap in _stored(self.store, taps)]
        return self.store.read_stored(samples, views, names)


class ResidentTaps:
    """Taps of the first views of a store, read once and kept, one tensor a tap.

    Args:
        taps: names; others cannot be read.
        views: how many views.
        device: where they are kept.
        subset: which part of the training samples is kept; others cannot be read.
    """

    def __init__(
        self,
        store: Store,
        taps: Sequence[str],
        views: int,
        device: torch.device,
        subset: Subset = EVERYTHING,
    ) -> None:
        self.store = store
        kept = pairs(store, views, subset)
        # The row of each (view, sample) pair in the tensors; pairs that are not kept have none.
        self._rows = np.where(kept, np.cumsum(kept).reshape(kept.shape) - 1, -1)
        self._tensors = {
            tap.name: torch.empty(
                (int(kept.sum()), *tap.shape), dtype=getattr(torch, tap.dtype), device=device
            )
            for tap in _stored(store, taps)
        }
        for shard in store.layout.shards():
            if shard.view < views:
                self._load(shard.view, np.arange(shard.start, shard.stop))

    def _load(self, view: int, samples: np.ndarray) -> None:
        rows = self._rows[view, samples]
        samples, rows = samples[rows >= 0], rows[rows >= 0]
        if not len(rows):
            return
        read = self.store.read_stored(samples.tolist(), view, list(self._tensors))
        for name, tensor in read.items():
            self._tensors[name][rows[0] : rows[-1] + 1] = tensor  # rows of a shard are consecutive

    def read(
        self, samples: np.ndarray, views: np.ndarray, taps: Sequence[str]
    ) -> dict[str, torch.Tensor]:
        """Tap name → (B, *tap), where they are kept; what `Store.read_stored` gives.

        Raises:
            UsageError: a pair that is not stored, or not kept.
        """
        if (views >= len(self._rows)).any():
            raise UsageError("a view that is not resident is asked for.", resident=len(self._rows))
        numbers = self._rows[views, samples]
        if (numbers < 0).any():
            self.store.read(samples.tolist(), views.tolist(), taps)  # says which one, and why
            raise UsageError("a training sample that is not resident is asked for.")
        return {
            tap.name: _selected(self._tensors[tap.name], numbers)
            for tap in _stored(self.store, taps)
        }


def as_numbers(
    store: Store, stored: Mapping[str, torch.Tensor], taps: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Taps as methods read them: int8 ones multiplied with their scales, in float32."""
    return {
        tap.name: stored[tap.name]
        if tap.scales is None
        else dequantise(stored[tap.name], stored[tap.scales.name], tap)
        for tap in (store.taps[name] for name in taps)
    }


def _selected(tensor: torch.Tensor, rows: np.ndarray) -> torch.Tensor:
    """Rows of a tensor. On the CPU without PyTorch's threads: batches are made beside a training
    step, whose cores they would wait for.
    """
    if tensor.device.type != "cpu":
        return tensor.index_select(0, sent(rows, tensor.device))
    return torch.from_numpy(as_stored(tensor)[rows]).view(tensor.dtype)


def pairs(store: Store, views: int, subset: Subset = EVERYTHING) -> np.ndarray:
    """Which pairs of the first views are stored, without training samples that are not of a part:
    bool (views, samples).
    """
    everything = range(store.samples)
    stored = np.stack([store.available(everything, view) for view in range(views)])
    stored[:, np.setdiff1d(store.samples_of("train"), subset.of_training(store))] = False
    return stored


def _stored(store: Store, taps: Sequence[str]) -> tuple[TapSpec, ...]:
    return with_scales([store.taps[name] for name in taps])
