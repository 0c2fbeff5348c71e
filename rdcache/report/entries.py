"""What stands in the places of a table of comparisons: metrics, gains, how sure they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TypeVar

from rdcache.report.comparison import Comparison, in_points
from rdcache.report.notes import seeds_in_words
from rdcache.report.rows import DISTANCES
from rdcache.report.significance import Gain, ImageTest
from rdcache.report.tables import (
    MARK,
    MISSING,
    SURE,
    Entry,
    Heading,
    as_distance,
    as_percent,
    with_best,
)

NOTHING = Entry("")
Key = TypeVar("Key")


def distinct(items: Sequence[Comparison], key: Callable[[Comparison], Key]) -> list[Key]:
    """What items have for a key, each once, in the order of the grid."""
    return list(dict.fromkeys(map(key, items)))


def metric_entry(item: Comparison, metric: str) -> Entry:
    """Mean ± std over seeds, or why there is none."""
    if values := item.row.values.get(metric):
        entry = as_distance if metric in DISTANCES else as_percent
        return entry(list(values.values()))
    return Entry("diverged") if item.row.diverged else MISSING


def marked(item: Comparison | None) -> Entry:
    """A cell of a grid, with a mark where it differs from its baseline over test images."""
    if item is None:
        return MISSING
    entry = metric_entry(item, item.metric)
    sure = item.images is not None and item.images.p < SURE
    return replace(entry, text=entry.text + MARK) if sure else entry


def best_of(
    items: Sequence[Comparison | None], several: Sequence[Mapping[int, object]]
) -> list[Entry]:
    """Marked cells that compete with each other, the best in bold. One that lacks a seed that
    another has does not compete.

    Args:
        several: for each cell, what it has of each seed.
    """
    seeds = {seed for values in several for seed in values}
    return with_best([marked(it) for it in items], [seeds <= set(values) for values in several])


def gain_entry(gain: Gain | None) -> Entry:
    """A gain and its interval in percentage points; nothing where there is none."""
    if gain is None:
        return NOTHING
    bounds = {"low": 100 * gain.low, "high": 100 * gain.high} if gain.pairs > 1 else {}
    return Entry(in_points(gain), 100 * gain.mean, bounds)


def test_entries(test: ImageTest | None) -> tuple[Entry, Entry]:
    """The interval over test images, in points, and the p-value, to two digits."""
    if test is None:
        return NOTHING, NOTHING
    low, high = 100 * test.low, 100 * test.high
    p = f"{test.p:.2f}" if test.p >= 0.01 else f"{test.p:.1g}"
    bounds = Entry(f"{low:+.1f} to {high:+.1f}", 100 * test.mean, {"low": low, "high": high})
    return bounds, Entry(p, test.p)


def seeds_entry(item: Comparison) -> Entry:
    """How many seeds there are, and which diverged."""
    count = len(item.row.seeds)
    text = str(count)
    if item.row.diverged:
        text += f" ({seeds_in_words(item.row.diverged)} diverged)"
    return Entry(text, count)


def published_entry(value: float | None, form: str = ".2f") -> Entry:
    """A number of the paper, or a dash."""
    return MISSING if value is None else Entry(f"{value:{form}}", value)


def gain_heading(metric: str, baseline: str) -> Heading:
    """Over a column of gains."""
    name = f"{metric.replace('_', ' ')} gain over {baseline}"
    return Heading(name, unit="points", aside="95 %")


TEST_HEADINGS = (Heading("over images", unit="points", aside="95 %"), Heading("p", aside="images"))


def mean_by_seed(several: Sequence[Mapping[int, float]]) -> list[float]:
    """For each seed that all have, the mean over them."""
    if not several:
        return []
    seeds = sorted(set.intersection(*(set(values) for values in several)))
    return [fmean(values[seed] for values in several) for seed in seeds]
