"""Methods side by side: mean ± standard deviation over seeds, and the paired gain over a baseline.

Runs of the same seed share their initial weights, their batch order and their views, so the gain
is computed seed by seed and its interval is Student's t over the paired differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy import stats


@dataclass(frozen=True)
class Row:
    """One method on one dataset; metrics are fractions, one per seed.

    Attributes:
        values: metric name → seed → value.
        factor: what the method's reference weights were multiplied with, if they were tuned.
        diverged: seeds with which training came to no student.
    """

    dataset: str
    teacher: str
    student: str
    method: str
    values: Mapping[str, Mapping[int, float]]
    factor: float | None = None
    diverged: tuple[int, ...] = ()


@dataclass(frozen=True)
class Gain:
    """A paired difference in a metric: its mean over seeds and the 95 % interval around it."""

    mean: float
    low: float
    high: float
    pairs: int


@dataclass(frozen=True)
class Comparison:
    """A row with its gain over the baseline of the same dataset, teacher and student."""

    row: Row
    gain: Gain | None


def compare(
    rows: Sequence[Row], metric: str = "accuracy", baseline: str = "none"
) -> list[Comparison]:
    """Pair every row with the baseline method's row of the same dataset, teacher and student."""
    bases = {(row.dataset, row.teacher, row.student): row for row in rows if row.method == baseline}
    comparisons = []
    for row in rows:
        base = bases.get((row.dataset, row.teacher, row.student))
        gain = None
        if base is not None and base is not row:
            gain = paired_gain(row.values.get(metric, {}), base.values.get(metric, {}))
        comparisons.append(Comparison(row, gain))
    return comparisons


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


def in_percent(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation, in per cent.

    >>> in_percent([0.80, 0.82])
    '81.0 ± 1.4'
    """
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"


def columns(comparisons: Sequence[Comparison], metrics: Sequence[str]) -> list[str]:
    """Headings of the lines that `cells` makes."""
    tuned = ["weights"] if _any_tuned(comparisons) else []
    gain = "gain (95 % interval)"
    return ["dataset", "teacher", "student", "method", *tuned, *metrics, gain, "seeds"]


def lines(comparisons: Sequence[Comparison], metrics: Sequence[str]) -> list[list[str]]:
    """One table line each: names, factor where weights were tuned, metrics, gain, seeds."""
    tuned = _any_tuned(comparisons)
    return [_line(item, metrics, tuned) for item in comparisons]


def markdown(comparisons: Sequence[Comparison], metrics: Sequence[str]) -> str:
    """A Markdown table: one line per dataset and method, metrics in per cent."""
    headings = columns(comparisons, metrics)
    table = [headings, ["---"] * len(headings), *lines(comparisons, metrics)]
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def _any_tuned(comparisons: Sequence[Comparison]) -> bool:
    return any(item.row.factor is not None for item in comparisons)


def _line(comparison: Comparison, metrics: Sequence[str], tuned: bool) -> list[str]:
    row, gain = comparison.row, comparison.gain
    missing = "diverged" if row.diverged else "–"
    shown = [
        in_percent(list(row.values[metric].values())) if row.values.get(metric) else missing
        for metric in metrics
    ]
    seeds = str(max((len(values) for values in row.values.values()), default=0))
    if row.diverged:
        seeds += f" ({', '.join(map(str, row.diverged))} diverged)"
    factor = [] if not tuned else ["–" if row.factor is None else f"×{row.factor:g}"]
    names = [row.dataset, row.teacher, row.student, row.method]
    return [*names, *factor, *shown, in_points(gain), seeds]


def in_points(gain: Gain | None) -> str:
    """A gain and its interval in percentage points; nothing where there is none."""
    if gain is None:
        return ""
    if gain.pairs == 1:
        return f"{100 * gain.mean:+.1f}"
    return f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
