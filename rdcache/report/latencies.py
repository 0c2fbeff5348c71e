"""How long forward passes take: median and 90th percentile, batch by batch, device by device."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from rdcache.models import choose_device

WARM_UP = 2  # forward passes before the clock runs
FEWEST, MOST = 5, 200  # forward passes that are timed
MILLISECONDS = 1e3
Forward = Callable[[torch.Tensor], object]


@dataclass(frozen=True)
class Latency:
    """How long a forward pass takes.

    Attributes:
        device: `cpu`, `cuda`, ….
        batch: images a pass.
        median, p90: milliseconds a pass, over `passes`.
    """

    device: str
    batch: int
    median: float
    p90: float
    passes: int


def measure_latencies(
    on: Callable[[torch.device], Forward],
    shape: Sequence[int],
    batches: Sequence[int],
    devices: Sequence[torch.device],
    seconds: float,
) -> tuple[tuple[Latency, ...], list[str]]:
    """Time each device with each batch size.

    Args:
        on: moves a network to a device and gives its forward pass there.
        shape: of one image or volume, channels first.
        seconds: to spend on each.

    Returns:
        The latencies, and notes on batches that a device has no memory for.
    """
    latencies, notes = [], []
    for device in devices:
        forward = on(device)
        for batch in batches:
            try:
                images = random_images(batch, shape).to(device)
                latencies.append(time_passes(forward, images, seconds))
            except torch.OutOfMemoryError:
                notes.append(f"a batch of {batch} does not fit into the memory of {device}")
    on(torch.device("cpu"))
    return tuple(latencies), notes


def time_passes(forward: Forward, images: torch.Tensor, seconds: float) -> Latency:
    """Time forward passes after a few that warm up; on a GPU each until it has finished.

    Args:
        seconds: to spend; see `FEWEST` and `MOST` for the limits.
    """
    device = images.device
    taken: list[float] = []
    began = time.perf_counter()
    with torch.inference_mode():
        while len(taken) < FEWEST + WARM_UP or (
            len(taken) < MOST + WARM_UP and time.perf_counter() - began < seconds
        ):
            start = time.perf_counter()
            forward(images)
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            taken.append((time.perf_counter() - start) * MILLISECONDS)
    counted = taken[WARM_UP:]
    median, p90 = (float(each) for each in np.percentile(counted, (50, 90)))
    return Latency(device.type, len(images), median, p90, len(counted))


def timed_on(asked: str) -> list[torch.device]:
    """The devices to time on; `auto` is the CPU, and a GPU where there is one."""
    chosen = choose_device(asked)
    if asked == "auto" and chosen.type != "cpu":
        return [torch.device("cpu"), chosen]
    return [chosen]


def random_images(batch: int, shape: Sequence[int]) -> torch.Tensor:
    """The same noise at every call: float32 (B, *shape), channels last where it is images.

    Args:
        shape: of one image or volume, channels first.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, *shape, generator=generator)
    return images.contiguous(memory_format=torch.channels_last) if images.ndim == 4 else images
