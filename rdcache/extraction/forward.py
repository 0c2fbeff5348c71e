"""The frozen teacher over chosen samples and views: decode, cut, normalise, forward.

While the teacher works on one batch, a small pool of threads decodes and cuts the next ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch

from rdcache.data import ImageDataset, cut_view
from rdcache.models import Teacher

if TYPE_CHECKING:
    from rdcache.extraction.plan import ExtractionPlan

BATCHES_AHEAD = 3
DECODING_THREADS = 4


class TeacherForward:
    """Turns (view, samples) into tap tensors, batch after batch.

    Args:
        view_parameters: float64 (views, samples, 6), columns `rdcache.data.VIEW_COLUMNS`.
        precision: `float32`, or `bfloat16` for autocast arithmetic.
    """

    def __init__(
        self,
        teacher: Teacher,
        dataset: ImageDataset,
        view_parameters: np.ndarray,
        taps: Sequence[str],
        batch_size: int,
        precision: str,
    ) -> None:
        self.teacher = teacher
        self.dataset = dataset
        self.view_parameters = view_parameters
        self.taps = tuple(taps)
        self.batch_size = batch_size
        self.precision = precision

    def batches(self, view: int, samples: Sequence[int]) -> Iterator[dict[str, torch.Tensor]]:
        """Float32 tensors of samples of one view, on the CPU, in the order asked for."""
        with ThreadPoolExecutor(DECODING_THREADS, thread_name_prefix="decode") as pool:
            ahead: deque[list[Future[np.ndarray]]] = deque()
            for first in range(0, len(samples), self.batch_size):
                batch = samples[first : first + self.batch_size]
                ahead.append([pool.submit(self._cut, view, sample) for sample in batch])
                if len(ahead) > BATCHES_AHEAD:
                    yield self._forward(ahead.popleft())
            while ahead:
                yield self._forward(ahead.popleft())

    def _cut(self, view: int, sample: int) -> np.ndarray:
        """One sample as the teacher sees it: uint8 (size, size, 3)."""
        preprocessing = self.teacher.preprocessing
        return cut_view(
            self.dataset.decode(sample),
            self.view_parameters[view, sample],
            preprocessing.size,
            preprocessing.interpolation,
        )

    def _forward(self, cut_images: list[Future[np.ndarray]]) -> dict[str, torch.Tensor]:
        images = torch.from_numpy(np.stack([image.result() for image in cut_images]))
        device = self.teacher.device
        normalised = self.teacher.preprocessing.normalise(images.to(device))
        with torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=self.precision == "bfloat16"
        ):
            outputs = self.teacher.forward_taps(normalised, self.taps)
        return {name: output.float().cpu() for name, output in outputs.items()}


def forward_of(plan: ExtractionPlan) -> TeacherForward:
    """The plan's teacher over its images and views."""
    return TeacherForward(
        plan.teacher,
        plan.dataset,
        plan.view_parameters,
        [tap.name for tap in plan.layout.taps],
        plan.config.batch_size,
        plan.config.precision,
    )
