"""The frozen teacher over chosen samples and views: decode, cut, normalise, forward, to the host.

All of it goes on at once: a pool of threads decodes and cuts the images of the next batches, and a
GPU computes one batch while the tensors of the one before it are copied to the host.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from rdcache.data import (
    ImageDataset,
    Volume,
    VolumeDataset,
    WorkingVolumes,
    cut_view,
    cut_volume,
)
from rdcache.errors import DeviceMemoryError
from rdcache.extraction.precision import arithmetic
from rdcache.extraction.reduction import pooled
from rdcache.models import Teacher
from rdcache.store.threads import usable_cores

if TYPE_CHECKING:
    from rdcache.extraction.plan import ExtractionPlan

BATCHES_AHEAD = 3
DECODING_THREADS = min(16, max(4, usable_cores()))
VOLUME_THREADS = min(4, usable_cores())  # each holds a whole volume, of half a gigabyte perhaps

Key = TypeVar("Key")
CutImages = list[Future[np.ndarray]]


class TeacherForward:
    """Turns (view, samples) into tap tensors, batch after batch.

    Args:
        view_parameters: float64 (views, samples, columns), see `rdcache.data.view_columns`.
        precision: `float32`, or `bfloat16` for autocast arithmetic.
        pools: of the maps that are pooled, positions along each axis.

    Attributes:
        batch_size: images of a forward pass; halved for good where a GPU's memory does not suffice.
    """

    def __init__(
        self,
        teacher: Teacher,
        dataset: ImageDataset,
        view_parameters: np.ndarray,
        taps: Sequence[str],
        batch_size: int,
        precision: str,
        pools: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.teacher = teacher
        self.dataset = dataset
        self.view_parameters = view_parameters
        self.taps = tuple(taps)
        self.batch_size = batch_size
        self.precision = precision
        self.pools = dict(pools or {})
        # What memory holds of them is decoded once, not for every view.
        self._volumes = WorkingVolumes(dataset) if isinstance(dataset, VolumeDataset) else None

    def batches(self, view: int, samples: Sequence[int]) -> Iterator[dict[str, torch.Tensor]]:
        """Float32 tensors of samples of one view, on the CPU, in the order asked for."""
        for _, outputs in self.stream([(None, view, samples)]):
            if outputs:
                yield outputs

    def stream(
        self, requests: Iterable[tuple[Key, int, Sequence[int]]]
    ) -> Generator[tuple[Key, dict[str, torch.Tensor]], None, None]:
        """Float32 tensors of many requests, on the CPU, batch after batch, in the order asked for.

        Requests are pulled as their images are to be decoded, a few batches ahead. No batch spans
        two of them, so that what one gives depends on what came before it only where a GPU's memory
        has made batches smaller.

        Args:
            requests: each a key, a view and its samples.

        Yields:
            The request's key with a batch; with an empty one if it asks for no samples.

        Raises:
            DeviceMemoryError: the memory of the GPU does not suffice for a single image.
        """
        landing: tuple[Key, Landing] | None = None
        with closing(self.on_device(requests)) as passes:
            for key, outputs in passes:
                started = self._to_host(outputs)
                del outputs  # before the next pass wants its memory
                if landing is not None:
                    yield landing[0], landing[1].wait()
                landing = key, started
        if landing is not None:
            yield landing[0], landing[1].wait()

    def on_device(
        self, requests: Iterable[tuple[Key, int, Sequence[int]]]
    ) -> Generator[tuple[Key, dict[str, torch.Tensor]], None, None]:
        """What `stream` gives, where it is computed; a GPU may still be at it."""
        with closing(self._decoded(requests)) as decoded:
            for key, images in decoded:
                for outputs in self._passes(images):
                    yield key, outputs
                    del outputs

    def _decoded(
        self, requests: Iterable[tuple[Key, int, Sequence[int]]]
    ) -> Generator[tuple[Key, CutImages], None, None]:
        """Batches of images that are being decoded, some ahead of what is asked for."""
        ahead: deque[tuple[Key, CutImages]] = deque()
        threads = DECODING_THREADS if self.dataset.dimensions == 2 else VOLUME_THREADS
        pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        try:
            for key, view, samples in requests:
                if not len(samples) and not ahead:
                    yield key, []  # nothing to decode, and nothing that it would overtake
                    continue
                size = self.batch_size  # may be halved meanwhile; `_passes` cuts what is too large
                for first in range(0, max(len(samples), 1), size):
                    batch = samples[first : first + size]
                    ahead.append((key, [pool.submit(self._cut, view, each) for each in batch]))
                    if len(ahead) > BATCHES_AHEAD:
                        yield ahead.popleft()
            while ahead:
                yield ahead.popleft()
        finally:
            pool.shutdown(cancel_futures=True)

    def _cut(self, view: int, sample: int) -> np.ndarray:
        """One sample as the teacher sees it: uint8 (size, size, 3), or of a volume float32
        (C, *patch) in 0…1.
        """
        parameters = self.view_parameters[view, sample]
        if self._volumes is not None:
            return self._cut_volume(self._volumes[sample], parameters)
        preprocessing = self.teacher.of_images
        return cut_view(
            self.dataset.decode(sample),
            parameters,
            preprocessing.size,
            preprocessing.interpolation,
        )

    def _cut_volume(self, volume: Volume, parameters: np.ndarray) -> np.ndarray:
        preprocessing = self.teacher.of_volumes
        outside = preprocessing.outside(volume.low)
        box = cut_volume(volume.values, parameters, preprocessing.patch, outside)
        return preprocessing.scaled(box, volume.low, volume.high)

    def _passes(self, images: CutImages) -> Iterator[dict[str, torch.Tensor]]:
        """A batch in one forward pass, or in several where the device's memory allows no more."""
        if not images:
            yield {}
        while images:
            part = images[: self.batch_size]
            outputs = None
            try:
                outputs = self._forward(part)
            except torch.OutOfMemoryError as error:
                why = str(error).partition(". ")[0]
            if outputs is None:  # out here, no traceback holds what that pass had allocated
                # A compiled program computes a whole batch, however few of its images count.
                self._ask_less(self.batch_size if self.teacher.compiled else len(part), why)
                continue
            yield outputs
            images = images[len(part) :]

    def _ask_less(self, images: int, why: str) -> None:
        if images == 1:
            raise DeviceMemoryError(
                f"{self.teacher.name} does not fit into the device's memory with a single image.",
                device=self.teacher.device,
                why=why,
                next="end other programs on this GPU, choose another --device or --device cpu, or "
                "try --precision bfloat16",
            )
        self.batch_size = (images + 1) // 2
        if self.teacher.device.type == "cuda":
            torch.cuda.empty_cache()

    def _forward(self, cut_images: CutImages) -> dict[str, torch.Tensor]:
        """One forward pass: float32 tensors on the device, where they may still be under way."""
        count = len(cut_images)
        images = torch.from_numpy(np.stack([image.result() for image in cut_images]))
        device = self.teacher.device
        if device.type == "cuda":
            images = images.pin_memory()
        images = images.to(device, non_blocking=True)
        if self.teacher.compiled and count < self.batch_size:  # another shape is compiled anew
            images = torch.cat(
                [images, images.new_zeros(self.batch_size - count, *images.shape[1:])]
            )
        normalised = self.teacher.preprocessing.normalise(images)
        with arithmetic(device, self.precision):
            outputs = self.teacher.forward_taps(normalised, self.taps)
        return {
            name: pooled(output[:count].float(), self.pools.get(name))
            for name, output in outputs.items()
        }

    def _to_host(self, outputs: dict[str, torch.Tensor]) -> Landing:
        """Begin to copy a batch to the CPU; a GPU goes on with the next one meanwhile."""
        device = self.teacher.device
        if device.type != "cuda":
            return Landing({name: output.cpu() for name, output in outputs.items()})
        self._copying.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(self._copying):
            # To pinned memory, as PyTorch has it for copies that nobody waits for.
            tensors = {
                name: output.to("cpu", non_blocking=True) for name, output in outputs.items()
            }
            for output in outputs.values():
                output.record_stream(self._copying)  # not to be used again before it is copied
            return Landing(tensors, self._copying.record_event())

    @cached_property
    def _copying(self) -> torch.cuda.Stream:
        return torch.cuda.Stream(self.teacher.device)


@dataclass(frozen=True)
class Landing:
    """Tensors on their way to the host.

    Attributes:
        landed: what tells that they are there; None if they are.
    """

    tensors: dict[str, torch.Tensor]
    landed: torch.cuda.Event | None = None

    def wait(self) -> dict[str, torch.Tensor]:
        """The tensors, once they are there."""
        if self.landed is not None:
            self.landed.synchronize()
        return self.tensors


def forward_of(
    plan: ExtractionPlan, taps: Sequence[str] | None = None, batch_size: int | None = None
) -> TeacherForward:
    """The plan's teacher over its images and views.

    Args:
        taps: names; by default all that the plan keeps.
        batch_size: by default the plan's.
    """
    return TeacherForward(
        plan.teacher,
        plan.dataset,
        plan.view_parameters,
        [it.kept.name for it in plan.kept] if taps is None else taps,
        batch_size or plan.batch_size,
        plan.config.precision,
        {it.kept.name: it.pool for it in plan.kept if it.pool is not None},
    )
