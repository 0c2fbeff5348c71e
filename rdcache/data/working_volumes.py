"""Decoded volumes and masks, kept where memory or a disk can hold them.

Unpacking a volume takes far longer than cutting a patch of it, and each is needed once a view.
"""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from rdcache.data.kept_volumes import KeptVolumes
from rdcache.data.volume_dataset import VolumeDataset
from rdcache.data.volumes import Volume
from rdcache.memory import available_memory

MEMORY_SHARE = 0.25
# One for each few samples, of whatever dataset: two threads may ask for the same one.
_writing = [threading.Lock() for _ in range(64)]


class WorkingVolumes:
    """The volumes of a dataset; may be asked by several threads.

    Args:
        ram_limit: bytes that volumes and masks may take in memory (default: a quarter of what is
            available).
        cache: a folder to keep all of them in, for later runs and other processes; none of them is
            kept in memory then.

    Raises:
        UsageError, FileWriteError: see `KeptVolumes`.
    """

    def __init__(
        self, dataset: VolumeDataset, ram_limit: int | None = None, cache: Path | None = None
    ) -> None:
        self.dataset = dataset
        self._segmented = dataset.task == "segmentation"
        each = dataset.channels * np.dtype(np.float32).itemsize + self._segmented
        sizes = np.array([sample.size for sample in dataset.samples], np.int64).reshape(-1, 3)
        self.nbytes = sizes.prod(axis=1) * each
        limit = int(available_memory() * MEMORY_SHARE) if ram_limit is None else ram_limit
        # Training volumes first: most views are theirs.
        order = np.argsort(dataset.splits != "train", kind="stable")
        self._stays = np.zeros(len(sizes), bool)
        self._stays[order] = np.cumsum(self.nbytes[order]) <= limit
        self._files = None if cache is None else KeptVolumes(cache, dataset.digest)
        self._volumes: dict[int, Volume] = {}
        self._masks: dict[int, np.ndarray] = {}

    def __getitem__(self, sample: int) -> Volume:
        """One volume, not to be written to.

        Raises:
            DatasetError: see `ImageDataset.decode`.
            CorruptInputsError: what is kept on disk is damaged.
        """
        if self._files is not None:
            self._fill(self._files, sample)
            return self._files[sample]
        volume = self._volumes.get(sample)
        if volume is None:
            volume = self.dataset.decode(sample)
            if self._stays[sample]:
                self._volumes[sample] = volume
        return volume

    def mask(self, sample: int) -> np.ndarray:
        """Its mask: uint8 (D, H, W), not to be written to.

        Raises:
            DatasetError: see `ImageDataset.decode_mask`.
            CorruptInputsError: what is kept on disk is damaged.
        """
        if self._files is not None and self._segmented:
            self._fill(self._files, sample)
            return self._files.mask(sample)
        mask = self._masks.get(sample)
        if mask is None:
            mask = self.dataset.decode_mask(sample)
            if self._stays[sample]:
                self._masks[sample] = mask
        return mask

    def _fill(self, files: KeptVolumes, sample: int) -> None:
        if sample in files:
            return
        with _writing[sample % len(_writing)]:
            if sample not in files:
                mask = self.dataset.decode_mask(sample) if self._segmented else None
                files.keep(sample, self.dataset.decode(sample), mask)

    def __str__(self) -> str:
        """How many are kept, and where, in a few words."""
        if self._files is not None:
            return f"{len(self._stays)} volumes, kept on disk"
        kept = "kept" if self._stays.all() else f"{int(self._stays.sum())} of them kept"
        return f"{len(self._stays)} volumes, {kept} in memory"
