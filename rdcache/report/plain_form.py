"""The plain table: one line for each dataset, teacher, student and method, with all metrics."""

from __future__ import annotations

from collections.abc import Sequence

from rdcache.report import published
from rdcache.report.comparison import Comparison
from rdcache.report.entries import (
    MISSING,
    TEST_HEADINGS,
    gain_entry,
    gain_heading,
    metric_entry,
    published_entry,
    seeds_entry,
    test_entries,
)
from rdcache.report.notes import about_paper, metric_of, notes_on
from rdcache.report.rows import DISTANCES, METRICS, PLAIN
from rdcache.report.tables import Entry, Heading, Table

NAMES = ("dataset", "teacher", "student", "method")


def plain_table(title: str, comparisons: Sequence[Comparison], baseline: str = PLAIN) -> Table:
    """Test metrics in per cent, and the gain over the baseline over seeds."""
    return _table(title, comparisons, baseline, tested=False, paper=None)


def tested_table(
    title: str, comparisons: Sequence[Comparison], baseline: str, reference: bool
) -> Table:
    """The plain table, with how sure the gain is over test images."""
    paper = [
        published.published_accuracy(*it.row.place, it.row.method)
        if it.row.values.get(published.METRIC)
        else None
        for it in comparisons
    ]
    return _table(title, comparisons, baseline, tested=True, paper=paper if reference else None)


def shown_metrics(comparisons: Sequence[Comparison]) -> list[str]:
    """Those of each task, its headline first; the leak-free one only where a test set leaks."""
    shown: dict[str, None] = {}
    for headline in dict.fromkeys(item.row.headline for item in comparisons):
        of_it = [item.row for item in comparisons if item.row.headline == headline]
        first, *others = of_it[0].metrics
        leaking = any(row.leaked and row.split == "test" for row in of_it)
        shown |= dict.fromkeys([first, *([of_it[0].leak_free] if leaking else []), *others])
    return list(shown) or list(METRICS)


def _table(
    title: str,
    comparisons: Sequence[Comparison],
    baseline: str,
    tested: bool,
    paper: Sequence[float | None] | None,
) -> Table:
    metrics = shown_metrics(comparisons)
    tuned = any(item.row.factor is not None for item in comparisons)
    known = paper is not None and any(value is not None for value in paper)
    headings = [
        *map(Heading, NAMES),
        *([Heading("weights", unit="factor")] if tuned else []),
        *(_heading(name, comparisons) for name in metrics),
        *([Heading("accuracy, paper", unit="%", aside="%")] if known else []),
        gain_heading(metric_of(comparisons), baseline),
        *(TEST_HEADINGS if tested else ()),
        Heading("seeds"),
    ]
    lines = []
    for index, item in enumerate(comparisons):
        row = item.row
        lines.append(
            (
                *(Entry(name) for name in (*row.place, row.method)),
                *([_factor(row.factor)] if tuned else []),
                *(metric_entry(item, metric) for metric in metrics),
                *([published_entry(paper[index])] if paper and known else []),
                gain_entry(item.gain),
                *(test_entries(item.images) if tested else ()),
                seeds_entry(item),
            )
        )
    notes = notes_on(comparisons)
    if paper is not None:
        notes += about_paper(known)
    return Table(title, tuple(headings), tuple(lines), block=4, notes=notes)


def _heading(metric: str, comparisons: Sequence[Comparison]) -> Heading:
    """Over a column of a metric, in per cent or in the unit of its distances."""
    if metric not in DISTANCES:
        return Heading(metric, unit="%", aside="%")
    units = dict.fromkeys(
        item.row.distance_unit for item in comparisons if metric in item.row.values
    )
    unit = " or ".join(filter(None, units)) or "px or mm"
    return Heading(metric, unit=unit, aside=unit)


def _factor(factor: float | None) -> Entry:
    return MISSING if factor is None else Entry(f"×{factor:g}", factor)
