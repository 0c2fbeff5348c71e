"""Batches for training and evaluation: cached taps beside the images of the very same views.

Where a GPU trains, one background thread reads and cuts the next batches meanwhile; where a CPU
does, they are made between the steps, unless that means waiting.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from rdcache.data import CLEAN_VIEW, StudentInputs
from rdcache.distillation.randomness import counted_generator
from rdcache.distillation.residency import TapSource, as_numbers
from rdcache.distillation.sampling import Picks
from rdcache.methods import CachedBatch

BATCHES_AHEAD = 2
BATCHES_TRIED = 2
EVALUATION_BATCH = 64
Made = TypeVar("Made")


@dataclass(frozen=True)
class TrainingBatch:
    """What one training step needs.

    Attributes:
        cached: the teacher's side and the labels.
        images: float32 (B, 3, S, S), or None where the student takes no part.
    """

    cached: CachedBatch
    images: torch.Tensor | None


class BatchSource:
    """Batches of cached taps and the student's images in step.

    Args:
        device: where batches go.
    """

    def __init__(self, taps: TapSource, inputs: StudentInputs, device: torch.device) -> None:
        self.store = taps.store
        self.taps = taps
        self.inputs = inputs
        self.device = device

    def training(
        self,
        batches: Sequence[Picks],
        taps: Sequence[str],
        with_images: bool,
        *key: str | int,
    ) -> Iterator[TrainingBatch]:
        """Read the batches of an epoch in order; photometric jitter is drawn by key and step."""

        def make(step: int) -> TrainingBatch:
            picks = batches[step]
            images = None
            if with_images:
                generator = counted_generator("jitter", *key, step)
                images = self._images(picks.samples, picks.views, generator)
            return self._each(self._pinned, TrainingBatch(self.cached(picks, taps), images))

        arrange = made_between if self.device.type == "cpu" else made_ahead
        for batch in arrange(make, len(batches)):
            moved = self._each(self._moved, batch)
            numbers = as_numbers(self.store, moved.cached.taps, taps)
            yield replace(moved, cached=replace(moved.cached, taps=numbers))

    def clean_images(self, samples: np.ndarray) -> Iterator[torch.Tensor]:
        """Images of the clean view, for evaluation, in batches, in order."""
        parts = _parts(samples)

        def make(number: int) -> torch.Tensor:
            return self._images(parts[number], _clean(parts[number]), None)

        for images in made_ahead(make, len(parts)):
            yield images.to(self.device, non_blocking=True)

    def clean_taps(
        self, samples: np.ndarray, taps: Sequence[str]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Cached taps of the clean view, for evaluation, in batches, in order."""
        parts = _parts(samples)

        def make(number: int) -> dict[str, torch.Tensor]:
            return self.taps.read(parts[number], _clean(parts[number]), taps)

        for batch in made_ahead(make, len(parts)):
            moved = {name: self._moved(tensor) for name, tensor in batch.items()}
            yield as_numbers(self.store, moved, taps)

    def cached(self, picks: Picks, taps: Sequence[str]) -> CachedBatch:
        """Read the teacher's side of a batch, as it is stored."""
        read = self.taps.read(picks.samples, picks.views, taps)
        labels = np.asarray(self.store.labels)[picks.samples]
        return CachedBatch(torch.from_numpy(picks.samples), read, torch.from_numpy(labels))

    def _images(
        self, samples: np.ndarray, views: np.ndarray, generator: np.random.Generator | None
    ) -> torch.Tensor:
        images = self.inputs.batch(samples.tolist(), views.tolist(), generator)
        return images.contiguous(memory_format=torch.channels_last)

    def _pinned(self, tensor: torch.Tensor) -> torch.Tensor:
        """Where a GPU can fetch it while it computes."""
        wanted = self.device.type == "cuda" and not tensor.is_cuda
        return tensor.pin_memory() if wanted else tensor

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=True)

    def _each(
        self, change: Callable[[torch.Tensor], torch.Tensor], batch: TrainingBatch
    ) -> TrainingBatch:
        """Do the same with every tensor of a batch."""
        cached = CachedBatch(
            change(batch.cached.samples),
            {name: change(tap) for name, tap in batch.cached.taps.items()},
            change(batch.cached.target),
        )
        return TrainingBatch(cached, None if batch.images is None else change(batch.images))


def made_ahead(make: Callable[[int], Made], count: int) -> Iterator[Made]:
    """Yield make(0) … make(count − 1), the next ones being made in one background thread."""
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        ahead: deque[Future[Made]] = deque()
        for number in range(count):
            ahead.append(thread.submit(make, number))
            if len(ahead) > BATCHES_AHEAD:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def made_between(make: Callable[[int], Made], count: int) -> Iterator[Made]:
    """The same for training on a CPU, where each step keeps all cores busy: what is done beside it
    holds up all of its threads, while between two steps it takes no more than its own time.

    Only if that is mostly waiting (for a disk, a bucket, threads that decode), by the first ones,
    the others are made ahead.
    """
    tried = min(BATCHES_TRIED, count)
    passed = computed = 0.0
    for number in range(tried):
        passed, computed = passed - time.perf_counter(), computed - time.thread_time()
        made = make(number)
        passed, computed = passed + time.perf_counter(), computed + time.thread_time()
        yield made
    if computed >= passed / 2:
        yield from map(make, range(tried, count))
    else:
        yield from made_ahead(lambda number: make(tried + number), count - tried)


def _clean(samples: np.ndarray) -> np.ndarray:
    return np.full(len(samples), CLEAN_VIEW)


def _parts(samples: np.ndarray) -> list[np.ndarray]:
    return [
        samples[start : start + EVALUATION_BATCH]
        for start in range(0, len(samples), EVALUATION_BATCH)
    ]
