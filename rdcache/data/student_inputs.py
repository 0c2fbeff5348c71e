"""The student's side of a view: the same box, mirroring and turns, at the student's own size.

Images are decoded once and kept at their working size (`working_images.py`), cut views are kept as
well, both as long as they fit the memory they may use. What is left to do for a batch is to gather
cuts, jitter and normalise them (`photometry.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch

from rdcache.data.mask_cuts import MaskCuts
from rdcache.data.photometry import Jitter, Photometry
from rdcache.data.samples import ImageDataset
from rdcache.data.views import cut_view
from rdcache.data.working_images import WorkingImages, working_sizes
from rdcache.errors import DatasetError
from rdcache.memory import available_memory
from rdcache.store.threads import usable_cores

MOST_THREADS = 16
MEMORY_SHARE = 0.25
MOST_MEMORY = 64 * 2**30


class StudentInputs:
    """Batches of student inputs, cut from the images with the parameters of the cached views.

    Args:
        parameters: float64 (views, samples, 6), columns `VIEW_COLUMNS`, from the store.
        size: side of the student's square input in pixels.
        mean, std: the student's normalisation, per channel, in fractions of full white.
        ram_limit: bytes that images, and again cut views, may take (default: a quarter of the
            memory that is available, but at most 64 GiB).
        working_scale: training images are kept at so many pixels for each of the student's (see
            `working_sizes`); 0: as they are, so that all cuts are those of the original image.
        cache: a folder to keep images in for later runs (see `open_pixel_file`).
        interpolation: how views are resized, see `cut_view`.

    Attributes:
        images: the images that views are cut from.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        parameters: np.ndarray,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        jitter: Jitter | None = None,
        ram_limit: int | None = None,
        *,
        working_scale: float = 0.0,
        cache: Path | None = None,
        interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    ) -> None:
        share = min(int(available_memory() * MEMORY_SHARE), MOST_MEMORY)
        limit = share if ram_limit is None else ram_limit
        self.dataset = dataset
        self.parameters = parameters
        self.size = size
        self.interpolation: Literal["bilinear", "bicubic"] = interpolation
        self.images = WorkingImages(
            dataset, working_sizes(dataset, parameters, size, working_scale), limit, cache
        )
        self._photometry = Photometry(mean, std, jitter)
        self._threads = ThreadPoolExecutor(
            min(2 * min(usable_cores(), torch.get_num_threads()), MOST_THREADS),
            thread_name_prefix="student-inputs",
        )
        segmented = dataset.task == "segmentation"
        each = (4 if segmented else 3) * size**2  # bytes of a cut view, and of its mask
        self._slots, kept = slots_of_cuts(dataset, len(parameters), limit // each)
        # Memory is taken page by page, as slots are filled. The last slot stays empty.
        self._cuts = np.empty((kept + 1, size, size, 3), np.uint8)
        self._centres = np.empty(kept + 1, np.float32)
        self._filled = np.zeros(kept + 1, bool)
        self._masks: MaskCuts | None = None
        if segmented:
            slots, threads = self._slots, self._threads
            self._masks = MaskCuts(dataset, parameters, size, slots, kept, limit, threads)

    def for_student(
        self, mean: Sequence[float], std: Sequence[float], jitter: Jitter | None
    ) -> Self:
        """The same images and cut views, kept once for both, jittered and normalised for another
        student of the same size.
        """
        other = copy.copy(self)
        other._photometry = Photometry(mean, std, jitter)
        return other

    def __str__(self) -> str:
        """Where images and cuts are kept, in a few words, for a report."""
        kept = len(self._filled) - 1
        return f"{self.images}; up to {kept} cut views kept in memory"

    def batch(
        self,
        samples: Sequence[int] | np.ndarray,
        views: Sequence[int] | np.ndarray | int,
        generator: np.random.Generator | None = None,
    ) -> torch.Tensor:
        """Cut, jitter and normalise a batch.

        Args:
            views: one view for each sample, or one for all.
            generator: draws the jitter; without one there is none.

        Returns:
            float32 (B, 3, size, size), in channels-last memory order.
        """
        pixels, centres = self.cuts(np.asarray(samples), views)
        return self._photometry.on_cpu(pixels, centres, generator)

    def masks(
        self, samples: Sequence[int] | np.ndarray, views: Sequence[int] | np.ndarray | int
    ) -> torch.Tensor:
        """Masks of the images that `batch` gives for the same samples and views, of a segmentation.

        Returns:
            int64 (B, size, size), the class number of each pixel.

        Raises:
            DatasetError: it is no segmentation, or see `ImageDataset.decode_mask`.
        """
        return torch.from_numpy(self._mask_cuts(samples, views)).long()

    def _mask_cuts(
        self, samples: Sequence[int] | np.ndarray, views: Sequence[int] | np.ndarray | int
    ) -> np.ndarray:
        """uint8 (B, size, size)."""
        if self._masks is None:
            raise DatasetError(f"{self.dataset.name} has no masks.", task=self.dataset.task)
        rows = np.asarray(samples)
        return self._masks(rows, np.broadcast_to(np.asarray(views), rows.shape))

    def cuts(
        self, samples: np.ndarray, views: Sequence[int] | np.ndarray | int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cut a batch, or take what was cut before.

        Returns:
            uint8 (B, size, size, 3), and the mean grey level of each, float32 (B,).
        """
        sides = np.broadcast_to(np.asarray(views), samples.shape)
        slots = self._slots[sides, samples]
        missing = np.flatnonzero(~self._filled[slots])
        pixels, centres = self._cuts.take(slots, axis=0), self._centres.take(slots)

        def cut(row: int) -> None:
            sample, view, slot = int(samples[row]), int(sides[row]), int(slots[row])
            pixels[row] = cut_view(
                self.images[sample], self.parameters[view, sample], self.size, self.interpolation
            )
            centres[row] = pixels[row].sum(dtype=np.uint64) / pixels[row].size
            if slot < len(self._filled) - 1:
                self._cuts[slot], self._centres[slot] = pixels[row], centres[row]
                self._filled[slot] = True  # last: another thread may be about to read it

        for _ in self._threads.map(cut, missing.tolist()):
            pass
        return pixels, centres


def slots_of_cuts(dataset: ImageDataset, views: int, capacity: int) -> tuple[np.ndarray, int]:
    """Where each cut view is kept: int64 (views, samples), and the number of places.

    What does not fit has the place after the last. First come the clean views of validation and
    test, which every evaluation needs, then the views of training images.
    """
    training = dataset.splits == "train"
    rank = np.where(training, 1, 2)[None].repeat(views, axis=0)
    rank[0, ~training] = 0
    order = np.argsort(rank, axis=None, kind="stable")
    kept = min(capacity, order.size)
    slots = np.full(order.size, kept, np.int64)
    slots[order[:kept]] = np.arange(kept)
    return slots.reshape(rank.shape), kept
