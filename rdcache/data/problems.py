"""What a user should know of a dataset before trusting it, in a few lines."""

from __future__ import annotations

import numpy as np

from rdcache.data.samples import ImageDataset

LISTED = 20  # skipped files that are named one by one


def describe_problems(dataset: ImageDataset) -> list[str]:
    """What is wrong or missing, a line each; empty if nothing."""
    skipped = dataset.skipped
    problems = [f"skipped {each.path}: {each.reason}" for each in skipped[:LISTED]]
    if len(skipped) > LISTED:
        problems.append(f"skipped {len(skipped) - LISTED} more files")
    problems += dataset.notes
    leaks = dataset.leaks
    if leaks.pairs or leaks.straddling_groups:
        problems += leaks.summary()
    where = "in any mask of" if dataset.task == "segmentation" else "images in"
    for split, counts in dataset.counts().items():
        problems += [f"no {name} {where} {split}" for name, count in counts.items() if not count]
    return problems


def describe_masks(dataset: ImageDataset) -> list[str]:
    """How much of a segmentation's masks is foreground, a line each; nothing for other tasks."""
    if dataset.task != "segmentation":
        return []
    counts = np.array([sample.mask_counts for sample in dataset.samples], np.int64)
    share = counts.sum(axis=0) / counts.sum()
    lines = [
        f"{name}: in {there} of {len(counts)} masks, {part:.2%} of all "
        + ("voxels" if dataset.dimensions == 3 else "pixels")
        for name, there, part in zip(dataset.classes, (counts > 0).sum(axis=0), share, strict=True)
        if name != dataset.classes[0]
    ]
    empty = int((counts[:, 1:].sum(axis=1) == 0).sum())
    return [*lines, f"{empty} of {len(counts)} masks are empty" if empty else "no mask is empty"]


def describe_volumes(dataset: ImageDataset) -> list[str]:
    """How large volumes are and how far apart their voxels, a line each; nothing of images."""
    if dataset.dimensions != 3:
        return []
    sizes = np.array([sample.size for sample in dataset.samples])
    spacings = np.array([sample.spacing for sample in dataset.samples], float)
    channels = f"{dataset.channels} channel" + ("s" if dataset.channels > 1 else "")
    return [
        f"{_ranges(sizes)} voxels along z, y, x; {channels}",
        f"{_ranges(spacings)} mm from voxel to voxel in the files",
    ]


def _ranges(rows: np.ndarray) -> str:
    """The smallest and the largest number of each column."""
    ends = zip(rows.min(axis=0).tolist(), rows.max(axis=0).tolist(), strict=True)
    columns = [(f"{low:.3g}", f"{high:.3g}") for low, high in ends]
    return " × ".join(low if low == high else f"{low}–{high}" for low, high in columns)
