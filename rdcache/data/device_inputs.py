"""Student inputs that are cut on the device: all training images lie there, as uint8.

A batch is one sequence of kernels: gather each view's surroundings, shrink them along the width and
then along the height by a matrix product each, jitter, normalise. The matrices hold the weights of
Pillow's antialiasing triangle filter, in its order and with its rounding to whole grey levels, so
that a cut differs from `cut_view` of the same image by one grey level at most, mirrorings and
quarter turns included. Evaluation keeps to Pillow's own cuts: what is reported of a student does
not depend on where its training images lay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, overload

import numpy as np
import torch

from rdcache.data.photometry import WHITE
from rdcache.data.student_inputs import StudentInputs
from rdcache.data.volume_inputs import VolumeInputs
from rdcache.memory import available_device_memory, sent

DEVICE_SHARE = 0.25  # of the device's free memory; the rest is for training
MOST_PIXELS = 2**25  # that are gathered at once: 0.8 GB on the way to a batch


@dataclass(frozen=True)
class FilterWeights:
    """How each of S output pixels is made of the pixels along one side of an image.

    Attributes:
        start: int64 (B,), the first pixel that any of them needs.
        length: how many pixels from there are enough for all images of the batch.
        first: int64 (B, S), the first pixel of each filter, counted from `start`.
        weights: float32 (B, S, K), of the K pixels from there on.
    """

    start: np.ndarray
    length: int
    first: np.ndarray
    weights: np.ndarray

    def matrix(self, device: torch.device) -> torch.Tensor:
        """The same as float32 (B, S, length)."""
        taps = self.weights.shape[2]
        places = sent(self.first, device)[..., None]
        places = places + torch.arange(taps, device=device)
        matrix = torch.zeros(*self.first.shape, self.length + taps, device=device)
        matrix.scatter_(2, places, sent(self.weights, device))
        return matrix[..., : self.length]


def filter_weights(
    low: np.ndarray, high: np.ndarray, sides: np.ndarray, size: int, flipped: np.ndarray
) -> FilterWeights:
    """The weights that Pillow's bilinear resize gives the interval from low to high.

    Args:
        low, high: float64 (B,), in pixels.
        sides: int64 (B,), pixels that there are.
        size: S, pixels that are wanted.
        flipped: bool (B,), whether the result is wanted backwards.
    """
    low, high = low.astype(np.float32), high.astype(np.float32)  # Pillow's boxes are of floats
    scale = ((high - low) / size).astype(np.float64)[:, None]
    support = np.maximum(scale, 1.0)
    order = np.arange(size)
    order = np.where(flipped[:, None], order[::-1], order)
    centre = low.astype(np.float64)[:, None] + (order + 0.5) * scale
    first = np.maximum(np.trunc(centre - support + 0.5).astype(np.int64), 0)
    stop = np.minimum(np.trunc(centre + support + 0.5).astype(np.int64), sides[:, None])
    taps = np.arange((stop - first).max())
    pixels = first[..., None] + taps
    distance = np.abs(pixels - centre[..., None] + 0.5) / support[..., None]
    weights = np.where(pixels < stop[..., None], np.maximum(1.0 - distance, 0.0), 0.0)
    weights /= weights.sum(axis=2, keepdims=True)
    start = first.min(axis=1)
    length = int((stop.max(axis=1) - start).max())
    return FilterWeights(start, length, first - start[:, None], weights.astype(np.float32))


class DeviceInputs(StudentInputs):
    """Student inputs on a device; training images are cut there, if it can hold all of them.

    Args:
        arguments, options: those of `StudentInputs`.
        device: where batches are wanted.
        device_limit: bytes that training images may take there (default: a quarter of what is
            free).

    Attributes:
        resident: whether training images lie on the device; otherwise they are cut by the CPU,
            and only jittered and normalised on the device.
    """

    def __init__(
        self,
        *arguments: Any,
        device: torch.device,
        device_limit: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(*arguments, **options)
        self.device = device
        self._on_device = self.dataset.splits == "train"
        needed = int(self.images.nbytes[self._on_device].sum())
        limit = _free_share(device) if device_limit is None else device_limit
        self.resident = needed <= limit
        if self.resident:
            self._load(needed)

    def __str__(self) -> str:
        """Where images and cuts are kept, in a few words, for a report."""
        where = "cut on the device" if self.resident else "cut by the CPU"
        return f"{super().__str__()}; training images are {where}"

    def batch(
        self,
        samples: Sequence[int] | np.ndarray,
        views: Sequence[int] | np.ndarray | int,
        generator: np.random.Generator | None = None,
    ) -> torch.Tensor:
        """Cut, jitter and normalise a batch on the device; see `StudentInputs.batch`."""
        samples = np.asarray(samples)
        if self.resident and self._on_device[samples].all():
            pixels = self.device_cuts(samples, np.broadcast_to(np.asarray(views), samples.shape))
            return self._photometry.on_device(pixels, pixels.mean(dim=(1, 2, 3)), generator)
        cuts, centres = (sent(each, self.device) for each in self.cuts(samples, views))
        return self._photometry.on_device(cuts, centres, generator)

    def masks(
        self, samples: Sequence[int] | np.ndarray, views: Sequence[int] | np.ndarray | int
    ) -> torch.Tensor:
        """Masks of a batch on the device, cut by the CPU; see `StudentInputs.masks`."""
        return sent(self._mask_cuts(samples, views), self.device).long()

    @torch.no_grad()
    def device_cuts(self, samples: np.ndarray, views: np.ndarray) -> torch.Tensor:
        """Cut views of training images on the device: float32 (B, S, S, 3), whole grey levels."""
        largest = int(self.images.sizes[samples].max(axis=0).prod())
        step = max(1, MOST_PIXELS // largest)
        parts = [slice(start, start + step) for start in range(0, len(samples), step)]
        return torch.cat([self._cut_together(samples[part], views[part]) for part in parts])

    def _cut_together(self, samples: np.ndarray, views: np.ndarray) -> torch.Tensor:
        sides = self.images.sizes[samples]  # width, height
        boxes = self.parameters[views, samples, :4] * np.tile(sides, 2)
        boxes[:, 2:] = np.minimum(boxes[:, 2:], sides)
        mirror = self.parameters[views, samples, 4] != 0
        turns = self.parameters[views, samples, 5].astype(np.int64) % 4
        # A quarter turn is a reflection, and then rows become columns.
        across = filter_weights(
            boxes[:, 0], boxes[:, 2], sides[:, 0], self.size, mirror ^ np.isin(turns, (1, 2))
        )
        down = filter_weights(boxes[:, 1], boxes[:, 3], sides[:, 1], self.size, turns >= 2)
        pixels = self._surroundings(samples, across, down)  # (B, 3, H, W)
        with torch.autocast(self.device.type, enabled=False):
            columns = across.matrix(self.device).transpose(1, 2)
            narrow = _whole(pixels.flatten(1, 2) @ columns).view(*pixels.shape[:3], self.size)
            cuts = _whole(down.matrix(self.device)[:, None] @ narrow)  # (B, 3, S, S)
        transposed = sent(turns % 2 == 1, self.device).view(-1, 1, 1, 1)
        cuts = torch.where(transposed, cuts.transpose(2, 3), cuts)
        return cuts.permute(0, 2, 3, 1).contiguous()

    def _surroundings(
        self, samples: np.ndarray, across: FilterWeights, down: FilterWeights
    ) -> torch.Tensor:
        """The pixels that a batch needs: float32 (B, 3, H, W); beyond a border, any."""

        def places(weights: FilterWeights, sides: np.ndarray) -> torch.Tensor:
            numbers = weights.start[:, None] + np.arange(weights.length)
            return sent(np.minimum(numbers, sides[:, None] - 1), self.device)

        sides = self.images.sizes[samples]
        columns, rows = places(across, sides[:, 0]), places(down, sides[:, 1])
        start, width = (
            sent(each, self.device).view(-1, 1, 1) for each in (self._starts[samples], sides[:, 0])
        )
        index = start + rows[:, :, None] * width + columns[:, None, :]
        pixels = self._pixels[index].permute(0, 3, 1, 2)
        return pixels.to(torch.float32, memory_format=torch.contiguous_format)

    def _load(self, nbytes: int) -> None:
        """Bring all training images to the device, one after the other."""
        counts = np.where(self._on_device, self.images.nbytes // 3, 0)
        self._starts = np.cumsum(counts) - counts  # each image's first pixel
        self._pixels = torch.empty((nbytes // 3, 3), dtype=torch.uint8, device=self.device)
        training = np.flatnonzero(self._on_device).tolist()
        images = self._threads.map(self.images.read, training)
        for sample, image in zip(training, images, strict=True):
            start = int(self._starts[sample])
            flat = torch.from_numpy(np.array(image)).view(-1, 3)  # mapped pages are read-only
            self._pixels[start : start + len(flat)] = flat.to(self.device)


@overload
def inputs_for(device: torch.device) -> Callable[..., StudentInputs]: ...


@overload
def inputs_for(
    device: torch.device, dimensions: int
) -> Callable[..., StudentInputs | VolumeInputs]: ...


def inputs_for(
    device: torch.device, dimensions: int = 2
) -> Callable[..., StudentInputs | VolumeInputs]:
    """What makes the student's inputs fastest for a device, called as `StudentInputs` is; for
    volumes as `VolumeInputs`, which takes the same arguments.
    """
    if dimensions == 3:
        return partial(VolumeInputs, device=device)
    if device.type == "cuda":
        return partial(DeviceInputs, device=device)
    return StudentInputs


def _whole(values: torch.Tensor) -> torch.Tensor:
    """Round to grey levels as Pillow does between its passes."""
    return values.add_(0.5).floor_().clamp_(0, WHITE)


def _free_share(device: torch.device) -> int:
    if device.type != "cuda":
        return 0
    return int(available_device_memory(device) * DEVICE_SHARE)
