"""What students see of images and volumes: which inputs there are for which, and at which size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdcache.data import ImageDataset, Jitter, VolumeInputs, inputs_for
from rdcache.distillation.batches import Inputs

# Mean and std of a student's normalisation, and the jitter that it trains with.
Look = tuple[Sequence[float], Sequence[float], Jitter | None]
Size = int | tuple[int, int, int]


def seen_size(views: Mapping[str, Any], dataset: ImageDataset, image_size: int) -> Size:
    """How much a student sees at once: the side of a square in pixels, or voxels along z, y, x.

    Args:
        views: what a manifest says of the views. Those that are patches of volumes have one size,
            which teacher and student share.
        image_size: the side where that is free: of a square, or of a cube.
    """
    if dataset.dimensions == 2:
        return image_size
    if patch := views.get("patch"):
        depth, height, width = (int(side) for side in patch)
        return depth, height, width
    return image_size, image_size, image_size


def student_inputs(
    dataset: ImageDataset,
    parameters: np.ndarray,
    size: Size,
    device: torch.device,
    look: Look,
    working_scale: float = 0.0,
    cache: Path | None = None,
) -> Inputs:
    """Inputs for students of a dataset, the fastest that there are for a device.

    Args:
        parameters: of the views, see `StudentInputs` and `VolumeInputs`.
        working_scale: see `StudentInputs`; of images alone.
        cache: a folder to keep decoded images in.
    """
    if isinstance(size, tuple):
        return VolumeInputs(dataset, parameters, size, *look, cache=cache, device=device)
    make = inputs_for(device)
    return make(dataset, parameters, size, *look, working_scale=working_scale, cache=cache)
