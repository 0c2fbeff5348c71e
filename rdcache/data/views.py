"""Views: deterministic crops, mirrorings and quarter turns, kept as numbers and replayed exactly.

A view's parameters depend on nothing but the sample's uid, the view's number and the version of
this file's rules, so they are the same on every machine and for every teacher.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from rdcache.data.volume_views import VOLUME_VIEW_COLUMNS, one_volume_view
from rdcache.errors import UsageError

# The box in fractions of the upright image's width and height. It is resized to a square, then
# mirrored left-right if `mirror` is 1, then turned counter-clockwise `quarter_turns` times.
VIEW_COLUMNS = ("left", "top", "right", "bottom", "mirror", "quarter_turns")
CLEAN_VIEW = 0  # the number of the view that evaluation looks through
VERSION = 1
TRIES = 10
MOST_VIEWS = 1000  # more than the longest training has epochs is a slip of the keyboard
RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
# (mirror, quarter turns) → the same as one step: Pillow moves whole pixels, NumPy single bytes.
SYMMETRIES = {
    (False, 1): Image.Transpose.ROTATE_90,
    (False, 2): Image.Transpose.ROTATE_180,
    (False, 3): Image.Transpose.ROTATE_270,
    (True, 0): Image.Transpose.FLIP_LEFT_RIGHT,
    (True, 1): Image.Transpose.TRANSPOSE,
    (True, 2): Image.Transpose.FLIP_TOP_BOTTOM,
    (True, 3): Image.Transpose.TRANSVERSE,
}


@dataclass(frozen=True)
class ViewSpec:
    """Which views there are. View 0 is always the clean one.

    Attributes:
        kind: `clean` (1 view), `flip` (2: clean and mirrored), `d4` (8: the square's symmetries),
            or `random` (crops).
        count: how many views, the clean one included.
        fit: the clean view's box: the whole image (`squash`) or its central square (`center`).
        symmetry: what random views may do beside cropping: nothing, mirror, or all of `d4`.
        scale: smallest and largest part of the image's area that a crop covers.
        ratio: smallest and largest width to height of a crop, in pixels.
        patch: of volumes, the voxels of every view along z, y, x; None: whole volumes, and crops.
        stride: of volumes, what the corners of patches are multiples of, in voxels.

    Raises:
        UsageError: a patch that no volume has, or that cannot be turned as the views ask for.
    """

    kind: Literal["clean", "flip", "d4", "random"]
    count: int
    fit: Literal["squash", "center"] = "squash"
    symmetry: Literal["none", "hflip", "d4"] = "hflip"
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    version: int = VERSION
    patch: tuple[int, int, int] | None = None
    stride: int = 1

    def __post_init__(self) -> None:
        if self.stride < 1 or (self.patch is not None and min(self.patch) < 1):
            raise UsageError(
                f"patches of {self.patch} voxels on a grid of {self.stride} cannot be cut: "
                "both are at least 1."
            )
        if self.kind == "d4" and self.patch is not None and self.patch[1] != self.patch[2]:
            raise UsageError(
                "--views d4 turns a patch within its slices, which must be squares then.",
                patch="×".join(map(str, self.patch)) + " (z, y, x)",
            )

    @classmethod
    def parse(
        cls,
        text: str,
        symmetry: Literal["none", "hflip", "d4"] = "hflip",
        fit: Literal["squash", "center"] = "squash",
        patch: tuple[int, int, int] | None = None,
        stride: int = 1,
    ) -> ViewSpec:
        """Read `clean`, `flip`, `d4`, or a number of views that counts the clean one.

        Raises:
            UsageError: the text is none of these.
        """
        of_volumes: dict[str, Any] = {"patch": patch, "stride": stride}
        if text in ("clean", "1"):
            return cls("clean", 1, fit, symmetry, **of_volumes)
        if text == "flip":
            return cls("flip", 2, fit, symmetry, **of_volumes)
        if text == "d4":
            return cls("d4", 8, fit, symmetry, **of_volumes)
        # Very long numbers are not even read: Python refuses to.
        if text.isdecimal() and len(text) <= len(str(MOST_VIEWS)) and 1 < int(text) <= MOST_VIEWS:
            return cls("random", int(text), fit, symmetry, **of_volumes)
        raise UsageError(
            f"--views: {text!r} is none of clean, flip, d4, or a number from 1 to {MOST_VIEWS}."
        )

    def to_dict(self) -> dict[str, Any]:
        """All attributes as JSON values; those of volumes only where there is a patch."""
        values = {**asdict(self), "scale": list(self.scale), "ratio": list(self.ratio)}
        patch, stride = values.pop("patch"), values.pop("stride")
        return values if patch is None else {**values, "patch": list(patch), "stride": stride}


def view_parameters(
    spec: ViewSpec, uids: Sequence[str] | np.ndarray, sizes: Sequence[tuple[int, ...]]
) -> np.ndarray:
    """Parameters of every view of every sample.

    Args:
        sizes: (width, height) of each upright image; of volumes, voxels along z, y, x.

    Returns:
        float64 (views, samples, 6), columns `VIEW_COLUMNS`; of volumes (views, samples, 10),
        columns `VOLUME_VIEW_COLUMNS`.
    """
    columns = view_columns(len(sizes[0]) if sizes else 2)
    parameters = np.empty((spec.count, len(uids), len(columns)))
    for sample, (uid, size) in enumerate(zip(uids, sizes, strict=True)):
        for view in range(spec.count):
            if len(size) == 3:
                random = _generator(str(uid), view, spec.version)
                parameters[view, sample] = one_volume_view(spec, random, view, size)
            else:
                parameters[view, sample] = _one_view(spec, str(uid), view, (size[0], size[1]))
    return parameters


def view_columns(dimensions: int) -> tuple[str, ...]:
    """Names of the columns of `view_parameters`, for images (2) or volumes (3)."""
    return VOLUME_VIEW_COLUMNS if dimensions == 3 else VIEW_COLUMNS


def cut_view(
    image: np.ndarray,
    parameters: np.ndarray,
    size: int,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
) -> np.ndarray:
    """Cut one view out of an image: box, resize with antialiasing, mirror, turn.

    Args:
        image: uint8 (H, W, 3), upright.
        parameters: (6,), columns `VIEW_COLUMNS`.
        size: side of the square result in pixels.

    Returns:
        uint8 (size, size, 3).
    """
    height, width = image.shape[:2]
    left, top, right, bottom, mirror, quarter_turns = parameters
    box = (left * width, top * height, min(right * width, width), min(bottom * height, height))
    cut = Image.fromarray(image).resize((size, size), RESAMPLING[interpolation], box=box)
    symmetry = SYMMETRIES.get((bool(mirror), int(quarter_turns) % 4))
    return np.array(cut if symmetry is None else cut.transpose(symmetry))


def cut_mask(mask: np.ndarray, parameters: np.ndarray, size: int) -> np.ndarray:
    """Cut one view out of a mask: the very box, mirroring and turns of `cut_view`, and for each
    pixel the class number at its centre.

    Args:
        mask: uint8 (H, W), of the upright image's size.
        parameters: (6,), columns `VIEW_COLUMNS`.
        size: side of the square result in pixels.

    Returns:
        uint8 (size, size).
    """
    height, width = mask.shape
    left, top, right, bottom, mirror, quarter_turns = parameters
    rows, columns = _centres(top, bottom, height, size), _centres(left, right, width, size)
    cut = mask[rows[:, None], columns[:: -1 if mirror else 1]]
    return np.ascontiguousarray(np.rot90(cut, int(quarter_turns)))


def _centres(low: float, high: float, side: int, size: int) -> np.ndarray:
    """The pixels in which the centres of `size` equal parts of an interval lie: int64 (size,).

    Args:
        low, high: the interval, in parts of the side.
        side: pixels that there are.
    """
    centres = low * side + (np.arange(size) + 0.5) * ((high - low) * side / size)
    return np.clip(np.floor(centres).astype(np.int64), 0, side - 1)


def _clean_box(spec: ViewSpec, size: tuple[int, int]) -> tuple[float, float, float, float]:
    if spec.fit == "squash":
        return 0.0, 0.0, 1.0, 1.0
    width, height = size
    side = min(width, height)
    left, top = (width - side) / 2 / width, (height - side) / 2 / height
    return left, top, 1.0 - left, 1.0 - top


def _one_view(
    spec: ViewSpec,
    uid: str,
    view: int,
    size: tuple[int, int],
) -> tuple[float, ...]:
    clean = _clean_box(spec, size)
    if view == 0:
        return (*clean, 0, 0)
    if spec.kind == "flip":
        return (*clean, 1, 0)
    if spec.kind == "d4":
        return (*clean, view // 4, view % 4)
    random = _generator(uid, view, spec.version)
    box = _random_box(random, spec, size)
    mirror = int(random.integers(2)) if spec.symmetry != "none" else 0
    turns = int(random.integers(4)) if spec.symmetry == "d4" else 0
    return (*box, mirror, turns)


def _generator(uid: str, view: int, version: int) -> np.random.Generator:
    """A counter-based generator of its own for each (uid, view, version)."""
    key = hashlib.blake2b(f"{uid}/{view}/{version}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


def _random_box(
    random: np.random.Generator, spec: ViewSpec, size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """A crop of random area and shape; after some vain tries, the largest central one allowed."""
    width, height = size
    for _ in range(TRIES):
        area = width * height * random.uniform(*spec.scale)
        ratio = math.exp(random.uniform(math.log(spec.ratio[0]), math.log(spec.ratio[1])))
        across, down = math.sqrt(area * ratio) / width, math.sqrt(area / ratio) / height
        if across <= 1 and down <= 1:
            left, top = random.uniform(0, 1 - across), random.uniform(0, 1 - down)
            return left, top, left + across, top + down
    ratio = min(max(width / height, spec.ratio[0]), spec.ratio[1])
    across, down = min(1.0, height * ratio / width), min(1.0, width / ratio / height)
    left, top = (1 - across) / 2, (1 - down) / 2
    return left, top, left + across, top + down
