"""The student's side of a view: the same box, mirroring and turns, at the student's own size.

Images are decoded once, and cut views are kept too, as long as they fit the memory they may use.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from rdcache.data.samples import ImageDataset
from rdcache.data.views import cut_view

THREADS = 4


@dataclass(frozen=True)
class Jitter:
    """Photometric jitter, the same for all pixels of an image; geometry is never touched.

    Attributes:
        brightness: each image is scaled by a factor drawn from 1 ± brightness.
        contrast: each image's distance from its mean is scaled by a factor from 1 ± contrast.
    """

    brightness: float = 0.2
    contrast: float = 0.2


class StudentInputs:
    """Batches of student inputs, cut from the images with the parameters of the cached views.

    Args:
        parameters: float64 (views, samples, 6), columns `VIEW_COLUMNS`, from the store.
        size: side of the student's square input in pixels.
        mean, std: the student's normalisation, per channel, in fractions of full white.
        ram_limit: bytes that decoded images, and again cut views, may take.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        parameters: np.ndarray,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        jitter: Jitter | None = None,
        ram_limit: int = 2 * 2**30,
    ) -> None:
        self.dataset = dataset
        self.parameters = parameters
        self.size = size
        self.jitter = jitter
        self._mean = torch.tensor(mean).view(3, 1, 1) * 255
        self._std = torch.tensor(std).view(3, 1, 1) * 255
        decoded = 3 * sum(width * height for width, height in (s.size for s in dataset.samples))
        self._images: dict[int, np.ndarray] | None = {} if decoded <= ram_limit else None
        views, samples = parameters.shape[:2]
        fits = views * samples * size * size * 3 <= ram_limit
        self._cuts: dict[tuple[int, int], np.ndarray] | None = {} if fits else None
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="student-inputs")

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
        sides = np.broadcast_to(np.asarray(views), (len(samples),))
        pairs = [(int(sample), int(view)) for sample, view in zip(samples, sides, strict=True)]
        missing = [pair for pair in pairs if self._cuts is None or pair not in self._cuts]
        fresh = dict(zip(missing, self._pool.map(self._cut, missing), strict=True))
        if self._cuts is not None:
            self._cuts.update(fresh)
            fresh = self._cuts
        pixels = torch.from_numpy(np.stack([fresh[pair] for pair in pairs]))
        images = pixels.permute(0, 3, 1, 2).float()
        if generator is not None and self.jitter is not None:
            images = _jittered(images, self.jitter, generator)
        return images.sub_(self._mean).div_(self._std)

    def _cut(self, pair: tuple[int, int]) -> np.ndarray:
        sample, view = pair
        return cut_view(self._image(sample), self.parameters[view, sample], self.size)

    def _image(self, sample: int) -> np.ndarray:
        if self._images is None:
            return self.dataset.decode(sample)
        if sample not in self._images:
            self._images[sample] = self.dataset.decode(sample)
        return self._images[sample]


def _jittered(images: torch.Tensor, jitter: Jitter, generator: np.random.Generator) -> torch.Tensor:
    """Scale brightness, then contrast around each image's mean, within 0–255."""
    draws = generator.uniform(-1.0, 1.0, (2, len(images))).astype(np.float32)
    brightness = torch.from_numpy(1 + jitter.brightness * draws[0]).view(-1, 1, 1, 1)
    contrast = torch.from_numpy(1 + jitter.contrast * draws[1]).view(-1, 1, 1, 1)
    images = images * brightness
    centre = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - centre) * contrast + centre).clamp_(0, 255)
