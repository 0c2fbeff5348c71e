"""What the forms of tables have in common: marked entries, averages seed by seed, notes below."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TypeVar

from rdcache.report import published
from rdcache.report.comparison import OF_IMAGES, Comparison
from rdcache.report.plain import metric_entry
from rdcache.report.tables import Entry

SURE = 0.05
MARK = " †"
MISSING = Entry("–")
Key = TypeVar("Key")


def distinct(items: Sequence[Comparison], key: Callable[[Comparison], Key]) -> list[Key]:
    """What items have for a key, each once, in the order of the grid."""
    return list(dict.fromkeys(map(key, items)))


def marked(item: Comparison | None) -> Entry:
    """A cell of a grid, with a mark where it differs from its baseline over test images."""
    if item is None:
        return MISSING
    entry = metric_entry(item, item.metric)
    sure = item.images is not None and item.images.p < SURE
    return replace(entry, text=entry.text + MARK) if sure else entry


def published_entry(value: float | None, form: str = ".2f") -> Entry:
    """A number of the paper, or a dash."""
    return MISSING if value is None else Entry(f"{value:{form}}", value)


def differences(item: Comparison) -> dict[int, float]:
    """Seed → metric minus the baseline's, for the seeds that both have."""
    if item.base is None:
        return {}
    base = item.base.values.get(item.metric, {})
    return {seed: value - base[seed] for seed, value in item.values.items() if seed in base}


def mean_by_seed(several: Sequence[Mapping[int, float]]) -> list[float]:
    """For each seed that all have, the mean over them."""
    if not several:
        return []
    seeds = sorted(set.intersection(*(set(values) for values in several)))
    return [fmean(values[seed] for values in several) for seed in seeds]


def about_marks(comparisons: Sequence[Comparison], baseline: str) -> tuple[str, ...]:
    """What the entries are, and what their marks mean."""
    metric = comparisons[0].metric if comparisons else "accuracy"
    what = f"{metric.replace('_', ' ').capitalize()} in per cent, mean ± std over seeds."
    if metric not in OF_IMAGES or not any(item.base for item in comparisons):
        return (what,)
    return (
        what,
        f"{MARK.strip()} differs from {baseline} with p < {SURE:g} over test images (paired "
        "bootstrap, not corrected for the number of entries).",
    )


def about_diverged(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """Which trainings came to nothing."""
    return tuple(
        f"Training diverged: {', '.join((*item.row.place, item.row.method))}, "
        f"seed {', '.join(map(str, item.row.diverged))}."
        for item in comparisons
        if item.row.diverged
    )


def about_paper(shown: bool) -> tuple[str, ...]:
    """Where the paper's numbers come from, or why there are none."""
    if shown:
        return (f"Columns of the paper: {published.SOURCE}.",)
    return ("The paper has no sound number for these data sets, teachers and students.",)
