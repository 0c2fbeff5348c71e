"""Teachers of images on volumes, slice by slice, and teachers of volumes on boxes of another size.

A slice is what lies at one z: its plane of y and x is resized to the teacher's square.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from rdcache.errors import UsageError
from rdcache.memory import sent
from rdcache.models.compiling import memory_format_of
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.taps import TapNetwork, measure_shapes, tap_specs
from rdcache.models.teacher import Teacher
from rdcache.models.volume_preprocessing import VolumePreprocessing

PIXELS_AT_ONCE = 32 * 224**2  # what the slices of one pass come to, so that memory is bounded
WHOLE_DEPTH = 32  # slices that a whole volume is resized to, where no patch is asked for
RGB = 3


@dataclass(frozen=True)
class SlicePreprocessing(VolumePreprocessing):
    """How a teacher of images is given the slices of a volume.

    Attributes:
        slices: every how manieth slice it sees.
        image: what it expects of an image; all but this is done to the volume.
    """

    slices: int = 1
    image: Preprocessing = field(default_factory=Preprocessing)

    def to_dict(self) -> dict[str, Any]:
        """See `VolumePreprocessing.to_dict`."""
        return {**super().to_dict(), "image": self.image.to_dict()}


class SliceWise(TapNetwork):
    """A network of images over the slices of volumes, in chunks that bound the memory.

    Maps are stacked along z, to (B, C, slices, h, w); vectors are averaged over the slices. Patch
    tokens are left out: they are the last map once more.
    """

    def __init__(self, network: TapNetwork, image: Preprocessing, every: int) -> None:
        super().__init__()
        self.network = network
        self.image = image
        self.every = every
        self.at_once = max(1, PIXELS_AT_ONCE // image.size**2)
        self.compilable = network.compilable
        self._memory_format = memory_format_of(network)

    @property
    def backbone(self) -> Any:
        """That of the network of images."""
        return self.network.backbone

    def compiled(self) -> Callable[..., dict[str, torch.Tensor]]:
        """With the network of images compiled, for chunks of one size."""
        forward = self.network.compiled()
        return lambda volumes, names=None: self._run(forward, volumes, names, fill=True)

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`; of volumes."""
        yield from self._run(self.network, images, None).items()

    def forward(
        self, images: torch.Tensor, names: Collection[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """As `TapNetwork.forward`, of volumes (B, C, D, H, W) in 0…1."""
        return self._run(self.network, images, names)

    def _run(
        self,
        forward: Callable[..., dict[str, torch.Tensor]],
        volumes: torch.Tensor,
        names: Collection[str] | None,
        *,
        fill: bool = False,
    ) -> dict[str, torch.Tensor]:
        """Run the slices in chunks.

        Args:
            fill: whether the last chunk is filled up with blanks: a program is compiled for one
                size.
        """
        chosen = slice_numbers(volumes.shape[2], self.every)
        count = len(chosen)
        stack = volumes.index_select(2, sent(np.array(chosen), volumes.device))
        slices = stack.transpose(1, 2).flatten(0, 1)  # (B·slices, C, H, W)
        parts: dict[str, list[torch.Tensor]] = {}
        for chunk in slices.split(self.at_once):
            images = self._as_images(chunk)
            if fill and len(images) < self.at_once:
                blanks = images.new_zeros(self.at_once - len(images), *images.shape[1:])
                images = torch.cat([images, blanks])
            outputs = forward(images, None if names is None else tuple(names))
            for name, value in outputs.items():
                if value.ndim in (2, 4):
                    parts.setdefault(name, []).append(value[: len(chunk)])
        return {name: _together(values, count) for name, values in parts.items()}

    def _as_images(self, slices: torch.Tensor) -> torch.Tensor:
        """(n, C, H, W) in 0…1 → (n, 3, S, S), normalised."""
        if slices.shape[1] != RGB:
            slices = slices.mean(1, keepdim=True).expand(-1, RGB, -1, -1)
        sides = (self.image.size, self.image.size)
        if slices.shape[2:] != sides:
            mode = self.image.interpolation
            # Bicubic curves overshoot; images of 8 bits are cut at black and white as well.
            slices = F.interpolate(slices, sides, mode=mode, antialias=True).clamp(0, 1)
        normalised = self.image.standardise(slices)
        return normalised.contiguous(memory_format=self._memory_format)


def slice_numbers(depth: int, every: int) -> list[int]:
    """Which slices are seen: evenly spaced, each in the middle of those it stands for.

    >>> slice_numbers(6, 1)
    [0, 1, 2, 3, 4, 5]
    >>> slice_numbers(9, 3)
    [1, 4, 7]
    """
    count = -(-depth // every)
    return [(2 * number + 1) * depth // (2 * count) for number in range(count)]


def for_volumes(
    teacher: Teacher,
    channels: int,
    patch: Sequence[int] | None = None,
    slices: int | None = None,
) -> Teacher:
    """The same frozen network for volumes of so many channels, cut to boxes of this size.

    A teacher of images sees them slice by slice. Of three channels each is a colour; the mean of
    any other number of channels is a grey image.

    Args:
        channels: of the volumes.
        patch: voxels of the box along z, y, x; by default the teacher's own, or for a teacher of
            images 32 slices of its own size.
        slices: for a teacher of images, every how manieth slice it sees (default: each).

    Raises:
        UsageError: the volumes' channels, the box or `slices` do not suit the teacher.
    """
    if teacher.dimensions == 2:
        return _slice_wise(teacher, channels, patch, slices or 1)
    if slices is not None:
        raise UsageError(
            "--slices is for teachers of images; this one sees whole volumes.",
            teacher=teacher.name,
        )
    own = teacher.of_volumes
    _require_channels(teacher, channels)
    if patch is None or tuple(patch) == own.patch:
        return teacher
    sides = _sides(patch)
    if any(side % own.divisor for side in sides):
        fitting = [-(-side // own.divisor) * own.divisor for side in sides]
        raise UsageError(
            f"the sides of a patch for {teacher.name} are multiples of {own.divisor}.",
            given="×".join(map(str, sides)),
            next=f"--patch {','.join(map(str, fitting))}",
        )
    try:
        shapes = measure_shapes(teacher.network, sides, own.channels)
    # What a network says of an input that does not suit it depends on where it fails.
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        raise UsageError(
            f"{teacher.name} does not run on patches of this size.",
            given="×".join(map(str, sides)),
            its_own="×".join(map(str, own.patch)),
        ) from error
    other = copy.copy(teacher)
    other.taps = tap_specs(shapes)
    other.preprocessing = replace(own, patch=sides)
    return other


def _slice_wise(
    teacher: Teacher, channels: int, patch: Sequence[int] | None, every: int
) -> Teacher:
    image = teacher.of_images
    sides = _sides(patch) if patch is not None else (WHOLE_DEPTH, image.size, image.size)
    count = len(slice_numbers(sides[0], every))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tap in teacher.taps.items():
        if len(tap.shape) == 3:
            shapes[name] = (tap.shape[0], count, *tap.shape[1:])
        elif len(tap.shape) == 1:
            shapes[name] = tap.shape
    if not shapes:
        raise UsageError(
            f"{teacher.name} gives neither maps nor vectors, which volumes are seen by."
        )
    wrapped = Teacher(
        name=teacher.name,
        architecture=f"slices/{teacher.architecture}",
        network=SliceWise(teacher.network, image, every),
        shapes=shapes,
        preprocessing=SlicePreprocessing(sides, channels, slices=every, image=image),
        weights=teacher.weights,
        adaptation=teacher.adaptation,
    )
    return wrapped.to(teacher.device)


def _require_channels(teacher: Teacher, channels: int) -> None:
    takes = teacher.of_volumes.channels
    if channels not in (1, takes):
        raise UsageError(
            f"{teacher.name} takes volumes of {takes} channel{'s' * (takes > 1)}; these have "
            f"{channels}.",
            next="another teacher: one of images sees volumes of any number of channels",
        )


def _sides(patch: Sequence[int]) -> tuple[int, int, int]:
    depth, height, width = patch
    return depth, height, width


def _together(parts: list[torch.Tensor], count: int) -> torch.Tensor:
    """Chunks of slices as what belongs to each volume: maps (B, C, count, h, w), means (B, C)."""
    values = torch.cat(parts).unflatten(0, (-1, count))
    return values.transpose(1, 2).contiguous() if values.ndim == 5 else values.float().mean(1)
