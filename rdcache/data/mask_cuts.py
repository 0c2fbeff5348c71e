"""Masks of a segmentation, cut with the views of the student's images.

A mask is cut out of the original, never out of a reduced one: class numbers are not averaged. Masks
are decoded once and cut views kept as well, both as long as they fit the memory they may use.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from rdcache.data.samples import ImageDataset
from rdcache.data.views import cut_mask
from rdcache.errors import DatasetError


class MaskCuts:
    """Cut views of a dataset's masks.

    Args:
        parameters: float64 (views, samples, 6), columns `VIEW_COLUMNS`.
        size: side of the square cuts in pixels.
        slots: int64 (views, samples), where each cut view is kept.
        kept: number of places; the slot after the last is for views that are not kept.
        ram_limit: bytes that decoded masks may take, cut views aside.
        threads: cut and decode.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        parameters: np.ndarray,
        size: int,
        slots: np.ndarray,
        kept: int,
        ram_limit: int,
        threads: ThreadPoolExecutor,
    ) -> None:
        self.dataset, self.parameters, self.size = dataset, parameters, size
        self._slots, self._threads = slots, threads
        # Memory is taken page by page, as slots are filled. The last slot stays empty.
        self._cuts = np.empty((kept + 1, size, size), np.uint8)
        self._filled = np.zeros(kept + 1, bool)
        pixels = np.array([int(np.prod(sample.size)) for sample in dataset.samples], np.int64)
        # Training masks first: each is cut several times, the others once.
        order = np.argsort(dataset.splits != "train", kind="stable")
        self._resident = np.zeros(len(pixels), bool)
        self._resident[order] = np.cumsum(pixels[order]) <= ram_limit
        self._masks: dict[int, np.ndarray] = {}

    def __call__(self, samples: np.ndarray, views: np.ndarray) -> np.ndarray:
        """Cut the masks of a batch, or take what was cut before.

        Args:
            samples, views: int64 (B,).

        Returns:
            uint8 (B, size, size), class numbers.

        Raises:
            DatasetError: see `ImageDataset.decode_mask`; or a mask of another size than before.
        """
        slots = self._slots[views, samples]
        missing = np.flatnonzero(~self._filled[slots])
        cuts = self._cuts.take(slots, axis=0)

        def cut(row: int) -> None:
            sample, slot = int(samples[row]), int(slots[row])
            mask = self._mask(sample)
            cuts[row] = cut_mask(mask, self.parameters[int(views[row]), sample], self.size)
            if slot < len(self._filled) - 1:
                self._cuts[slot] = cuts[row]
                self._filled[slot] = True  # last: another thread may be about to read it

        for _ in self._threads.map(cut, missing.tolist()):
            pass
        return cuts

    def _mask(self, sample: int) -> np.ndarray:
        """One mask, decoded once where it is kept: uint8 (H, W)."""
        mask = self._masks.get(sample)
        if mask is not None:
            return mask
        mask = self.dataset.decode_mask(sample)
        if mask.shape[::-1] != self.dataset.samples[sample].size:
            raise DatasetError(
                f"a mask of {self.dataset.name} has another size than its image.",
                image=self.dataset.samples[sample].path,
                next="run again: both are then looked at anew",
            )
        if self._resident[sample]:
            self._masks[sample] = mask
        return mask
