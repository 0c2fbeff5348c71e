"""The student's side of a view of a volume: the same box, mirroring and turns, as batches.

What a student sees is the volume within its range (`unit_range`), jittered there and normalised.
Volumes and cut views are kept as long as they fit the memory that they may use.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from rdcache.data.photometry import Jitter
from rdcache.data.samples import ImageDataset
from rdcache.data.student_inputs import MEMORY_SHARE, MOST_MEMORY, MOST_THREADS, slots_of_cuts
from rdcache.data.volume_dataset import require_volumes
from rdcache.data.volume_views import cut_volume, cut_volume_mask
from rdcache.data.volumes import Shape, unit_range
from rdcache.data.working_volumes import WorkingVolumes
from rdcache.errors import DatasetError, UsageError
from rdcache.memory import available_memory, sent
from rdcache.store.threads import usable_cores

CPU = torch.device("cpu")


class VolumeInputs:
    """Batches of student inputs, cut from volumes with the parameters of the cached views.

    Args:
        parameters: float64 (views, samples, 10), columns `VOLUME_VIEW_COLUMNS`, from the store.
        size: voxels of the student's input along z, y, x; one number for a cube. With patches,
            theirs: then no voxel is resampled.
        mean, std: the student's normalisation, of all channels or of each, in parts of the range.
        ram_limit: bytes that volumes, and again cut views, may take (default: a quarter of the
            memory that is available, but at most 64 GiB).
        cache: a folder to keep decoded volumes in for later runs (see `KeptVolumes`).
        device: where batches are wanted.
        options: those of `StudentInputs` that volumes have no use for.

    Attributes:
        volumes: the volumes that views are cut from.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        parameters: np.ndarray,
        size: int | Shape,
        mean: Sequence[float],
        std: Sequence[float],
        jitter: Jitter | None = None,
        ram_limit: int | None = None,
        *,
        cache: Path | None = None,
        device: torch.device = CPU,
        **options: Any,
    ) -> None:
        share = min(int(available_memory() * MEMORY_SHARE), MOST_MEMORY)
        limit = share if ram_limit is None else ram_limit
        self.dataset = require_volumes(dataset)
        self.parameters = parameters
        self.size: Shape = (size, size, size) if isinstance(size, int) else size
        self.device = device
        self.volumes = WorkingVolumes(self.dataset, limit, cache)
        self._photometry = VolumePhotometry(mean, std, jitter, dataset.channels)
        self._threads = ThreadPoolExecutor(
            min(2 * min(usable_cores(), torch.get_num_threads()), MOST_THREADS),
            thread_name_prefix="volume-inputs",
        )
        self._segmented = dataset.task == "segmentation"
        voxels = int(np.prod(self.size))
        each = voxels * (4 * dataset.channels + self._segmented)
        self._slots, kept = slots_of_cuts(dataset, len(parameters), limit // each)
        # Memory is taken page by page, as slots are filled. The last slot stays empty.
        self._cuts = np.empty((kept + 1, dataset.channels, *self.size), np.float32)
        self._filled = np.zeros(kept + 1, bool)
        self._masks = np.empty((kept + 1 if self._segmented else 1, *self.size), np.uint8)
        self._masks_filled = np.zeros(kept + 1, bool)

    def for_student(
        self, mean: Sequence[float], std: Sequence[float], jitter: Jitter | None
    ) -> Self:
        """The same volumes and cut views, kept once for both, jittered and normalised for another
        student of the same size.
        """
        other = copy.copy(self)
        other._photometry = VolumePhotometry(mean, std, jitter, self.dataset.channels)
        return other

    def __str__(self) -> str:
        """Where volumes and cuts are kept, in a few words, for a report."""
        return f"{self.volumes}; up to {len(self._filled) - 1} cut views kept in memory"

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
            float32 (B, C, *size), on the device.
        """
        cuts = sent(self.cuts(np.asarray(samples), views), self.device)
        return self._photometry(cuts, generator)

    def masks(
        self, samples: Sequence[int] | np.ndarray, views: Sequence[int] | np.ndarray | int
    ) -> torch.Tensor:
        """Masks of what `batch` gives for the same samples and views, of a segmentation.

        Returns:
            int64 (B, *size), the class number of each voxel, on the device.

        Raises:
            DatasetError: it is no segmentation, or see `ImageDataset.decode_mask`.
        """
        if not self._segmented:
            raise DatasetError(f"{self.dataset.name} has no masks.", task=self.dataset.task)
        rows = np.asarray(samples)
        sides = np.broadcast_to(np.asarray(views), rows.shape)
        slots = self._slots[sides, rows]
        cuts = self._masks.take(slots, axis=0)

        def cut(row: int) -> None:
            sample, view, slot = int(rows[row]), int(sides[row]), int(slots[row])
            mask = self.volumes.mask(sample)
            cuts[row] = cut_volume_mask(mask, self.parameters[view, sample], self.size)
            self._keep(self._masks, self._masks_filled, slot, cuts[row])

        for _ in self._threads.map(cut, np.flatnonzero(~self._masks_filled[slots]).tolist()):
            pass
        return sent(cuts, self.device).long()

    def cuts(self, samples: np.ndarray, views: Sequence[int] | np.ndarray | int) -> np.ndarray:
        """Cut a batch, or take what was cut before: float32 (B, C, *size), from 0 to 1."""
        sides = np.broadcast_to(np.asarray(views), samples.shape)
        slots = self._slots[sides, samples]
        cuts = self._cuts.take(slots, axis=0)

        def cut(row: int) -> None:
            sample, view, slot = int(samples[row]), int(sides[row]), int(slots[row])
            volume = self.volumes[sample]
            values = cut_volume(volume.values, self.parameters[view, sample], self.size, volume.low)
            cuts[row] = unit_range(values, volume.low, volume.high)
            self._keep(self._cuts, self._filled, slot, cuts[row])

        for _ in self._threads.map(cut, np.flatnonzero(~self._filled[slots]).tolist()):
            pass
        return cuts

    @staticmethod
    def _keep(kept: np.ndarray, filled: np.ndarray, slot: int, cut: np.ndarray) -> None:
        if slot < len(filled) - 1:
            kept[slot] = cut
            filled[slot] = True  # last: another thread may be about to read it


class VolumePhotometry:
    """Jitters batches within 0 to 1 and normalises them.

    Args:
        mean, std: of all channels or of each.
        jitter: none if there is none.

    Raises:
        UsageError: the normalisation is of another number of channels.
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], jitter: Jitter | None, channels: int
    ) -> None:
        for numbers in (mean, std):
            if len(numbers) not in (1, channels):
                raise UsageError(
                    f"these volumes have {channels} channels, and the student's normalisation "
                    f"{len(numbers)}.",
                    given=", ".join(map(str, numbers)),
                )
        self.jitter = jitter
        self._constants = {
            CPU: tuple(
                torch.tensor(each, dtype=torch.float32).view(1, -1, 1, 1, 1) for each in (mean, std)
            )
        }

    def __call__(self, values: torch.Tensor, generator: np.random.Generator | None) -> torch.Tensor:
        """Jitter and normalise, in place.

        Args:
            values: float32 (B, C, *size), from 0 to 1.
            generator: draws the jitter; without one there is none.
        """
        if generator is not None and self.jitter is not None:
            drawn = self.jitter.factors(len(values), generator)
            column = (-1, 1, 1, 1, 1)
            bright, contrast = (sent(each, values.device).view(column) for each in drawn)
            centres = values.mean(dim=(1, 2, 3, 4), keepdim=True)
            values.mul_(bright * contrast).add_(bright * (1 - contrast) * centres).clamp_(0, 1)
        if values.device not in self._constants:  # sent once: every copy is waited for
            self._constants[values.device] = tuple(
                each.to(values.device) for each in self._constants[CPU]
            )
        mean, std = self._constants[values.device]
        return values.sub_(mean).div_(std)
