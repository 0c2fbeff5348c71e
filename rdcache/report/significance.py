"""How sure a difference between two methods is: over seeds, over test images, over both.

Two methods are compared seed by seed: runs of one seed share their initial weights, their batches
and their views. Each test answers a question of its own:

`paired_gain`    would other seeds, on these test images, show it? Student's t interval.
`image_test`     would other test images, with these trained students, show it? A paired bootstrap
                 of images. Beside it, the same with seeds drawn anew as well.
                 Where images are worth more or less, as by their Dice, it is of these values.
`mcnemar`        do two students differ on these images? Exact, for one seed. p-values of several
                 seeds must not be pooled: the same images recur in all of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np
from scipy import stats

from rdcache.distillation.randomness import counted_generator

RESAMPLES = 10_000
AT_ONCE = 1000  # resamples of values that are drawn together
ROUNDING = 1e-12  # of a value, within which two sums are level


@dataclass(frozen=True)
class Gain:
    """A paired difference in a metric: its mean over seeds and the 95 % interval around it."""

    mean: float
    low: float
    high: float
    pairs: int

    def as_facts(self) -> dict[str, float | None]:
        """As JSON values. JSON has no infinity, which the interval of a single seed would need."""
        numbers = {"mean": self.mean, "low": self.low, "high": self.high, "pairs": self.pairs}
        return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


@dataclass(frozen=True)
class ImageTest:
    """A paired difference in accuracy, or in another mean over images, judged on the test images;
    fractions.

    Attributes:
        mean: over images and seeds.
        low, high: 95 % interval over draws of images.
        p: two-sided p-value of no difference, over draws of images.
        low_both, high_both: 95 % interval over draws of both seeds and images.
        mcnemar: seed → exact two-sided p-value of these two students; nothing where images are not
            just right or wrong.
        images: number of test images.
    """

    mean: float
    low: float
    high: float
    p: float
    low_both: float
    high_both: float
    mcnemar: Mapping[int, float]
    images: int


def paired_gain(values: Mapping[int, float], base: Mapping[int, float]) -> Gain | None:
    """Mean of the seed-by-seed differences and its 95 % Student interval.

    Args:
        values, base: seed → metric. Seeds that only one of them has are left out.

    Returns:
        None without a common seed; with a single one, an interval without bounds.
    """
    seeds = sorted(values.keys() & base.keys())
    if not seeds:
        return None
    differences = [values[seed] - base[seed] for seed in seeds]
    mean = fmean(differences)
    if len(seeds) == 1:
        return Gain(mean, -math.inf, math.inf, 1)
    half = float(stats.t.ppf(0.975, len(seeds) - 1)) * stdev(differences) / math.sqrt(len(seeds))
    return Gain(mean, mean - half, mean + half, len(seeds))


def image_test(
    correct: Mapping[int, np.ndarray], base: Mapping[int, np.ndarray]
) -> ImageTest | None:
    """Compare two methods on the same test images.

    The statistic is the mean over images of the mean over seeds of (correct − base correct). Images
    are drawn with replacement, all seeds of an image together; the interval is that of percentiles.
    The p-value is the share of draws that lie at least as far from the observed difference as that
    lies from 0. Right and wrong answers are counted in whole numbers, so ties are ties.

    Args:
        correct, base: seed → bool (n,), whether each test image was classified correctly, in one
            order of images; or float64 (n,), what each is worth. Seeds that only one of them has
            are left out.

    Returns:
        None without a common seed or without images.
    """
    seeds = sorted(correct.keys() & base.keys())
    if not seeds or not len(correct[seeds[0]]):
        return None
    answers = all(it.dtype == bool for seed in seeds for it in (correct[seed], base[seed]))
    exact = np.int64 if answers else np.float64
    differences = np.stack([correct[seed].astype(exact) - base[seed] for seed in seeds])
    count, images = differences.shape
    generator = counted_generator("paired bootstrap", images)
    drawn = (_drawn_sums if answers else _drawn_totals)(differences, generator)
    times = generator.multinomial(count, np.full(count, 1 / count), RESAMPLES)
    total, over_images = differences.sum(), drawn.sum(axis=1)
    slack = 0 if answers else ROUNDING * images
    extreme = int(np.count_nonzero(np.abs(over_images - total) >= abs(total) - slack))
    low, high = np.quantile(over_images, (0.025, 0.975)) / (count * images)
    low_both, high_both = np.quantile((times * drawn).sum(axis=1), (0.025, 0.975)) / (
        count * images
    )
    return ImageTest(
        mean=float(total / (count * images)),
        low=float(low),
        high=float(high),
        p=(1 + extreme) / (1 + RESAMPLES),
        low_both=float(low_both),
        high_both=float(high_both),
        mcnemar={seed: mcnemar(correct[seed], base[seed]) for seed in seeds} if answers else {},
        images=images,
    )


def mcnemar(correct: np.ndarray, base: np.ndarray) -> float:
    """Exact two-sided McNemar test: are the images that one student alone gets right as often one's
    as the other's?

    Args:
        correct, base: bool (n,).
    """
    gained = int(np.count_nonzero(correct & ~base))
    lost = int(np.count_nonzero(base & ~correct))
    return float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def _drawn_sums(differences: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Sums over images that are drawn with replacement: int64 (resamples, seeds).

    Images whose differences are the same are as one, so that drawing n images is one draw from a
    multinomial distribution over the few kinds there are.

    Args:
        differences: (seeds, images), each −1, 0 or 1.
    """
    kinds, counts = np.unique(differences, axis=1, return_counts=True)
    images = differences.shape[1]
    drawn = generator.multinomial(images, counts / images, RESAMPLES)
    sums: np.ndarray = drawn @ kinds.T
    return sums


def _drawn_totals(differences: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The same for values that hardly ever repeat: float64 (resamples, seeds).

    Args:
        differences: float64 (seeds, images).
    """
    images = differences.shape[1]
    even = np.full(images, 1 / images)
    parts = [
        generator.multinomial(images, even, AT_ONCE) @ differences.T
        for _ in range(RESAMPLES // AT_ONCE)
    ]
    return np.concatenate(parts)
