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
from typing import Protocol, Self, TypeVar

import numpy as np
import torch

from rdcache.data import CLEAN_VIEW, ImageDataset, Jitter
from rdcache.distillation.randomness import counted_generator
from rdcache.distillation.residency import TapSource, as_numbers
from rdcache.distillation.sampling import Picks
from rdcache.methods import CachedBatch

BATCHES_AHEAD = 2
BATCHES_TRIED = 2
EVALUATION_BATCH = 64
# Dense outputs, and volumes, take so much more memory that fewer are looked at together.
FEWER_AT_ONCE = {("segmentation", 2): 16, ("multiclass", 3): 8, ("multilabel", 3): 8}
FEWEST_AT_ONCE = 2
Made = TypeVar("Made")


class Inputs(Protocol):
    """Images, or volumes, and their masks as a student sees them through the cached views."""

    @property
    def dataset(self) -> ImageDataset:
        """Whose samples these are."""

    @property
    def parameters(self) -> np.ndarray:
        """Of the views: float64 (views, samples, columns)."""

    @property
    def size(self) -> int | tuple[int, int, int]:
        """Side of the square that is seen in pixels, or voxels along z, y, x."""

    def batch(
        self,
        samples: Sequence[int] | np.ndarray,
        views: Sequence[int] | np.ndarray | int,
        generator: np.random.Generator | None = None,
    ) -> torch.Tensor:
        """Float32 (B, C, *spatial), normalised; jittered where there is a generator."""

    def masks(
        self, samples: Sequence[int] | np.ndarray, views: Sequence[int] | np.ndarray | int
    ) -> torch.Tensor:
        """Class numbers, int64 (B, *spatial)."""

    def for_student(
        self, mean: Sequence[float], std: Sequence[float], jitter: Jitter | None
    ) -> Self:
        """The same, normalised and jittered for another student of the same size."""


@dataclass(frozen=True)
class TrainingBatch:
    """What one training step needs.

    Attributes:
        cached: the teacher's side and the labels.
        images: float32 (B, C, S, S), of volumes (B, C, D, H, W), or None where the student takes no
            part.
    """

    cached: CachedBatch
    images: torch.Tensor | None


class CleanViews:
    """What a student is evaluated on: the clean view of samples, in batches, in order.

    Args:
        device: where images go.

    Attributes:
        dataset: whose samples these are.
    """

    def __init__(self, inputs: Inputs, device: torch.device) -> None:
        self.inputs, self.device = inputs, device
        self.dataset = inputs.dataset
        task = (self.dataset.task, self.dataset.dimensions)
        few = FEWEST_AT_ONCE if self.dataset.dimensions == 3 else EVALUATION_BATCH
        self._at_once = FEWER_AT_ONCE.get(task, few)

    @property
    def patch(self) -> tuple[int, int, int]:
        """Voxels along z, y, x that the student sees of a volume at once."""
        assert isinstance(self.inputs.size, tuple)
        return self.inputs.size

    def parts(self, samples: np.ndarray) -> list[np.ndarray]:
        """The samples of each batch."""
        return [
            samples[start : start + self._at_once]
            for start in range(0, len(samples), self._at_once)
        ]

    def images(self, samples: np.ndarray, view: int = CLEAN_VIEW) -> Iterator[torch.Tensor]:
        """Images as the student wants them, on the device; in another view where one is named."""
        parts = self.parts(samples)

        def make(number: int) -> torch.Tensor:
            return laid_out(self.inputs.batch(parts[number], view))

        for images in made_ahead(make, len(parts)):
            yield images.to(self.device, non_blocking=True)

    def masks(self, samples: np.ndarray, view: int = CLEAN_VIEW) -> Iterator[torch.Tensor]:
        """The masks of the same, int64 (B, *spatial), on the CPU."""
        for part in self.parts(samples):
            yield self.inputs.masks(part, view).cpu()


class BatchSource:
    """Batches of cached taps and the student's images in step.

    Args:
        device: where batches go.

    Attributes:
        clean: what a student is evaluated on.
    """

    def __init__(self, taps: TapSource, inputs: Inputs, device: torch.device) -> None:
        self.store = taps.store
        self.taps = taps
        self.inputs = inputs
        self.device = device
        self.clean = CleanViews(inputs, device)

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

    def clean_taps(
        self, samples: np.ndarray, taps: Sequence[str]
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Cached taps of the clean view, for evaluation, in batches, in order."""
        parts = self.clean.parts(samples)

        def make(number: int) -> dict[str, torch.Tensor]:
            return self.taps.read(parts[number], _clean(parts[number]), taps)

        for batch in made_ahead(make, len(parts)):
            moved = {name: self._moved(tensor) for name, tensor in batch.items()}
            yield as_numbers(self.store, moved, taps)

    def cached(self, picks: Picks, taps: Sequence[str]) -> CachedBatch:
        """Read the teacher's side of a batch, as it is stored, and what the task asks for."""
        read = self.taps.read(picks.samples, picks.views, taps)
        return CachedBatch(torch.from_numpy(picks.samples), read, self._target(picks))

    def _target(self, picks: Picks) -> torch.Tensor:
        task = self.clean.dataset.task
        if task == "segmentation":
            return self.inputs.masks(picks.samples, picks.views)
        labels = torch.from_numpy(np.asarray(self.store.labels)[picks.samples])
        return labels.float() if task == "multilabel" else labels

    def _images(
        self, samples: np.ndarray, views: np.ndarray, generator: np.random.Generator | None
    ) -> torch.Tensor:
        return laid_out(self.inputs.batch(samples.tolist(), views.tolist(), generator))

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


def laid_out(images: torch.Tensor) -> torch.Tensor:
    """Images in the order in memory that convolutions are fastest in; volumes as they are."""
    if images.ndim == 4:
        return images.contiguous(memory_format=torch.channels_last)
    return images


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
