"""Metrics of a segmentation over cases, from the scores of each (`mask_metrics.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rdcache.distillation.mask_metrics import MaskScores
from rdcache.distillation.randomness import counted_generator

RESAMPLES = 10_000
AT_ONCE = 1000  # resamples that are drawn together


def segmentation_metrics(
    scores: Sequence[MaskScores],
    present: np.ndarray,
    classes: Sequence[str],
    unit: str,
    tolerance: float,
) -> dict[str, Any]:
    """Every metric that a result reports, as JSON values; fractions, and distances in `unit`.

    Args:
        scores: of each case, each of its foreground classes.
        present: bool (n, C − 1), whether the true mask of a case has the class.
        classes: names of the C classes, the background first.
        unit: of distances.
        tolerance: of the NSD, in that unit.

    Returns:
        `n`, and the means over cases, then over foreground classes, of `dice`, `iou`, `nsd`, and of
        `hd95` and `volume_error` where they are defined; each class's own below `of_class`;
        `dice_ci95` (95 %, bootstrap of cases), `dice_present` (over the cases that have the class),
        how often a number is not defined because one mask is empty (`hd95_undefined`,
        `volume_error_undefined`), and how many true masks have no foreground at all
        (`empty_truth`). What is defined nowhere is None.
    """
    names = list(classes[1:])
    table = {
        name: np.stack([getattr(each, name) for each in scores])
        for name in ("dice", "iou", "hd95", "nsd", "volume_error")
    }
    own = {name: _over_cases(values) for name, values in table.items()}
    of_present = _over_cases(np.where(present, table["dice"], np.nan))
    metrics: dict[str, Any] = {"n": len(scores)}
    metrics |= {name: _mean(values) for name, values in own.items()}
    return metrics | {
        "dice_ci95": list(mean_interval(table["dice"].mean(axis=1))),
        "dice_present": _mean(of_present),
        "hd95_undefined": int(np.isnan(table["hd95"]).sum()),
        "volume_error_undefined": int(np.isnan(table["volume_error"]).sum()),
        "empty_truth": int((~present.any(axis=1)).sum()),
        "distance_unit": unit,
        "nsd_tolerance": tolerance,
        "of_class": {
            name: {metric: _or_none(values[number]) for metric, values in own.items()}
            | {"dice_present": _or_none(of_present[number])}
            for number, name in enumerate(names)
        },
    }


def mean_interval(values: np.ndarray, coverage: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of a mean over cases, the same at every call.

    Args:
        values: float64 (n,).
    """
    n = len(values)
    generator = counted_generator("bootstrap of cases", n)
    means = np.concatenate(
        [
            values[generator.integers(n, size=(AT_ONCE, n))].mean(axis=1)
            for _ in range(RESAMPLES // AT_ONCE)
        ]
    )
    low, high = np.quantile(means, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def _over_cases(values: np.ndarray) -> np.ndarray:
    """Mean over the cases (n, C) where a number is defined; not a number where it is nowhere."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=0)
    count = known.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _mean(values: np.ndarray) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
