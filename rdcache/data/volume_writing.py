"""Predictions of a volume as NIfTI files on the grid of the volume's own file."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from rdcache.data.optional_readers import needed
from rdcache.data.volume_resampling import labels_at_original_spacing
from rdcache.data.volumes import Volume, back_on_file_axes
from rdcache.files import write_bytes


def write_on_original_grid(scores: np.ndarray, volume: Volume, path: Path) -> np.ndarray:
    """Write the class of each voxel of the file that a volume comes from, on its grid and affine.

    Args:
        scores: float32 (classes, D, H, W) on the volume's grid: probabilities, or logits; linear
            between voxels.
        path: ends with `.nii` or `.nii.gz`.

    Returns:
        uint8 (I, J, K): what was written, along the file's own axes.

    Raises:
        DatasetError: nibabel is not installed.
        FileWriteError: the file cannot be written.
    """
    nibabel = needed("nibabel", "NIfTI files")
    labels = back_on_file_axes(labels_at_original_spacing(scores, volume), volume.grid)
    image = nibabel.Nifti1Image(np.ascontiguousarray(labels), volume.grid.affine)
    image.header.set_xyzt_units("mm")
    data = image.to_bytes()
    if path.suffix.lower() == ".gz":
        # Without a time in its header: the same prediction is the same file.
        data = gzip.compress(data, mtime=0)
    write_bytes(path, data)
    return np.ascontiguousarray(labels)
