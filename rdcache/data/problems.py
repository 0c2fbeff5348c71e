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
