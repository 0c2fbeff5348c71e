"""Images at the size that crops are cut from, decoded once where memory or a disk can hold them.

A crop of an image that is many times finer than the student's input costs time and memory for
pixels that are averaged away. Such an image is reduced once. How far depends on the images, their
views and the student's input alone, never on the machine, since crops of a reduced image differ
from crops of the original in the last grey levels: what a machine has decides only where images are
kept. Images of validation and test are never reduced, so that what is reported of a student is of
what it will meet.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rdcache.data.pixel_file import PixelFile, open_pixel_file
from rdcache.data.samples import ImageDataset
from rdcache.errors import DatasetError

VERSION = 1  # of how images are reduced: kept ones are not used under another rule
# Nearly twice the pixels are to go, or an image stays as it is.
LARGEST_REDUCTION = 0.75


def working_sizes(
    dataset: ImageDataset, parameters: np.ndarray, size: int, scale: float
) -> np.ndarray:
    """The size that each image is kept at.

    Args:
        parameters: float64 (views, samples, 6), columns `VIEW_COLUMNS`.
        size: side of the student's input in pixels.
        scale: how many pixels an image must have, along both sides of the smallest box of its
            views, for each pixel of the student's input; 0: all it has.

    Returns:
        int64 (samples, 2), width and height; for images that are not of `train`, their own.
    """
    own = np.array([sample.size for sample in dataset.samples], np.int64).reshape(-1, 2)
    if not scale:
        return own
    boxes = parameters[..., 2:4] - parameters[..., :2]
    smallest = (boxes * own).min(axis=(0, 2))  # of all views, the shortest side in pixels
    with np.errstate(divide="ignore", invalid="ignore"):
        factor = scale * size / smallest
    reduced = (dataset.splits == "train") & (factor > 0) & (factor <= LARGEST_REDUCTION)
    return np.where(reduced[:, None], np.ceil(own * factor[:, None]), own).astype(np.int64)


class WorkingImages:
    """The images of a dataset at given sizes.

    Args:
        sizes: int64 (samples, 2), width and height.
        ram_limit: bytes that images may take in memory.
        cache: a folder to keep all of them in, for later runs and other processes; none of them is
            kept in memory then.

    Raises:
        FileWriteError: the folder cannot be written.
    """

    def __init__(
        self, dataset: ImageDataset, sizes: np.ndarray, ram_limit: int, cache: Path | None = None
    ) -> None:
        self.dataset = dataset
        self.sizes = sizes
        self.nbytes = 3 * sizes.prod(axis=1)
        self._file: PixelFile | None = None
        if cache is not None:
            self._file = open_pixel_file(cache, dataset.digest, VERSION, sizes, self.load)
        # Training images first: each is cut several times, the others once.
        order = np.argsort(dataset.splits != "train", kind="stable")
        self._kept = np.zeros(len(sizes), bool)
        self._kept[order] = np.cumsum(self.nbytes[order]) <= ram_limit
        self._images: dict[int, np.ndarray] = {}

    def __getitem__(self, sample: int) -> np.ndarray:
        """One image: uint8 (H, W, 3), not to be written to.

        Raises:
            DatasetError: see `ImageDataset.decode`.
            CorruptInputsError: what is kept on disk is damaged.
        """
        image = self.read(sample)
        if self._file is None and self._kept[sample]:
            self._images[sample] = image
        return image

    def read(self, sample: int) -> np.ndarray:
        """The same for who needs each image only once: it is not kept in memory."""
        if self._file is not None:
            return self._file[sample]
        kept = self._images.get(sample)
        return self.load(sample) if kept is None else kept

    def load(self, sample: int) -> np.ndarray:
        """Decode one image, and reduce it if its size says so."""
        image = self.dataset.decode(sample)
        listed, (width, height) = self.dataset.samples[sample].size, self.sizes[sample].tolist()
        if image.shape[:2] != listed[::-1]:
            raise DatasetError(
                f"an image of {self.dataset.name} has another size than when it was looked at.",
                file=self.dataset.samples[sample].path,
                next="run again: it is then looked at anew",
            )
        if listed == (width, height):
            return image
        # Bicubic is what the crops' own filter notices least: see docs/performance.md.
        return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))

    def __str__(self) -> str:
        """How many were reduced, and where they are kept, in a few words."""
        own = np.array([sample.size for sample in self.dataset.samples], np.int64).reshape(-1, 2)
        reduced = int((self.sizes != own).any(axis=1).sum())
        if self._file is not None:
            where = "kept on disk"
        elif self._kept.all():
            where = "kept in memory"
        else:
            where = f"{int(self._kept.sum())} of them kept in memory"
        return f"{len(own)} images, {reduced} of them reduced, {where}"
