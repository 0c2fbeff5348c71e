"""Datasets of volumes: `ImageDataset` whose samples are decoded to `Volume`s at one spacing."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

from rdcache.data import volumes
from rdcache.data.listing import Entry, Listing
from rdcache.data.samples import ImageDataset, Skipped
from rdcache.data.scan import Scan
from rdcache.data.volume_resampling import resampled, resampled_mask, resampled_shape
from rdcache.data.volumes import Spacing, Volume
from rdcache.errors import UsageError


@dataclass(frozen=True)
class VolumeDataset(ImageDataset):
    """A dataset of volumes; all of them have the spacing of `spec`, or each its own.

    Attributes:
        window: the range of intensities that all volumes share, if they do.
    """

    window: tuple[float, float] | None = None

    def decode(self, index: int) -> Volume:  # type: ignore[override]
        """One volume; `values` are float32 (C, D, H, W).

        Raises:
            DatasetError: the file is gone, broken, or another one than when it was looked at.
        """
        volume: Volume = super().decode(index)  # type: ignore[assignment]
        return resampled(volume, self.spec.spacing)

    def decode_mask(self, index: int) -> np.ndarray:
        """The mask of one volume, on its grid: uint8 (D, H, W).

        Raises:
            DatasetError: see `ImageDataset.decode_mask`.
        """
        sample = self.samples[index]
        mask = self.mask_at_original_spacing(index)
        assert sample.spacing is not None
        return resampled_mask(mask, sample.spacing, self.spec.spacing)

    def mask_at_original_spacing(self, index: int) -> np.ndarray:
        """The mask as its file has it, along z, y, x: uint8 (D', H', W')."""
        return super().decode_mask(index)

    @cached_property
    def digest(self) -> str:
        """sha256 over what `ImageDataset.digest` covers, spacing and window, and their rules."""
        facts = [self._samples_digest(), volumes.VERSION, self.spec.spacing, self.window]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def require_volumes(dataset: ImageDataset) -> VolumeDataset:
    """The same dataset, for who needs volumes.

    Raises:
        UsageError: it has images.
    """
    if not isinstance(dataset, VolumeDataset):
        raise UsageError(f"{dataset.name} holds images; this needs volumes.")
    return dataset


def as_spacing(numbers: Sequence[float]) -> Spacing | None:
    """What a scan knows of a spacing: of images nothing."""
    if not numbers:
        return None
    z, y, x = numbers
    return z, y, x


def alike(
    readable: Sequence[tuple[Entry, Scan]],
) -> tuple[list[tuple[Entry, Scan]], list[Skipped]]:
    """Those that have as many channels as most have, and the others with the reason."""
    counts = Counter(scan.channels for _, scan in readable)
    if len(counts) <= 1:
        return list(readable), []
    usual = max(counts, key=lambda channels: (counts[channels], -channels))
    others = [
        Skipped(entry.name, f"it has {scan.channels} channels, and most have {usual}")
        for entry, scan in readable
        if scan.channels != usual
    ]
    return [(entry, scan) for entry, scan in readable if scan.channels == usual], others


def of_dimensions(dataset: ImageDataset, listing: Listing) -> ImageDataset:
    """The dataset itself, or the dataset of volumes that it is.

    Raises:
        UsageError: images have no spacing that could be changed.
    """
    wanted = dataset.spec.spacing
    if dataset.dimensions == 2:
        if wanted is not None:
            raise UsageError(f"{dataset.name} holds images; a spacing is for volumes.")
        return dataset
    samples = []
    for sample in dataset.samples:
        depth, height, width = sample.size
        assert sample.spacing is not None
        size = resampled_shape((depth, height, width), sample.spacing, wanted)
        samples.append(replace(sample, size=size))
    same = {each.name: getattr(dataset, each.name) for each in fields(dataset)}
    return VolumeDataset(**{**same, "samples": tuple(samples)}, window=listing.window)
