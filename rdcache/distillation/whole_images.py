"""A student's dense outputs for whole images and volumes, from those for what it is made to see."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch.nn import functional as F

from rdcache.data import Volume, labels_at_original_spacing
from rdcache.distillation.evaluation import require_finite
from rdcache.models import Student

OVERLAP = 0.5  # of neighbouring windows
WINDOWS_AT_ONCE = 4


def image_logits(
    logits: torch.Tensor, box: Sequence[float] | np.ndarray, size: tuple[int, int]
) -> torch.Tensor:
    """Logits of a view, at the pixels of the image that the view was cut from.

    Args:
        logits: float32 (C, S, S), of a view that is neither mirrored nor turned.
        box: first of the view's parameters: left, top, right, bottom in fractions of the image.
        size: height and width of the image.

    Returns:
        float32 (C, *size). What the view does not show is background, class 0, for certain.
    """
    height, width = size
    left, right = (round(float(box[side]) * width) for side in (0, 2))
    top, bottom = (round(float(box[side]) * height) for side in (1, 3))
    shape = (max(bottom - top, 1), max(right - left, 1))
    seen = F.interpolate(logits[None], shape, mode="bilinear", align_corners=False)[0]
    if shape == size:
        return seen
    whole = torch.full((len(logits), *size), -torch.inf, device=logits.device)
    whole[0] = 0
    whole[:, top : top + shape[0], left : left + shape[1]] = seen
    return whole


def volume_logits(
    student: Student, volume: Volume, patch: tuple[int, int, int], device: torch.device
) -> torch.Tensor:
    """Logits of a whole volume, from windows that overlap by half, those near a window's middle
    weighing more.

    Args:
        patch: size of the window in voxels along z, y, x.
        device: where the student is.

    Returns:
        float32 (classes, D, H, W) on the volume's grid, on the CPU.

    Raises:
        TrainingError: NaN or Inf.
    """
    from monai.inferers import sliding_window_inference  # takes seconds to import

    unit = volume.unit()
    # A volume smaller than the window is padded with its low, as training patches are.
    pads = [max(0, side - have) for side, have in zip(patch, volume.shape, strict=True)]
    before = [pad // 2 for pad in pads]
    padded = np.pad(unit, [(0, 0), *((b, pad - b) for b, pad in zip(before, pads, strict=True))])
    mean, std = (
        torch.tensor(each, dtype=torch.float32).view(-1, 1, 1, 1)
        for each in (student.mean, student.std)
    )
    images = ((torch.from_numpy(padded) - mean) / std)[None]
    logits = sliding_window_inference(
        images,
        patch,
        WINDOWS_AT_ONCE,
        lambda windows: student(windows).logits.float(),
        overlap=OVERLAP,
        mode="gaussian",
        sw_device=device,
        device=torch.device("cpu"),
    )
    whole = cast(torch.Tensor, logits)[0]
    require_finite(whole)
    inside = (slice(b, b + side) for b, side in zip(before, volume.shape, strict=True))
    return whole[(slice(None), *inside)]


def volume_labels(
    student: Student, volume: Volume, patch: tuple[int, int, int], device: torch.device
) -> np.ndarray:
    """The class of every voxel at the spacing of the file: uint8 (D, H, W); see `volume_logits`."""
    probabilities = volume_logits(student, volume, patch, device).softmax(dim=0)
    return labels_at_original_spacing(probabilities.numpy(), volume)
