"""The plain table: one line for each dataset, teacher, student and method, with all metrics."""

from __future__ import annotations

from collections.abc import Sequence

from rdcache.report.comparison import Comparison, in_points
from rdcache.report.rows import LEAK_FREE, METRICS
from rdcache.report.significance import ImageTest
from rdcache.report.tables import Entry, Heading, Table, as_percent

NAMES = ("dataset", "teacher", "student", "method")


def plain_table(
    title: str, comparisons: Sequence[Comparison], baseline: str = "none", tested: bool = False
) -> Table:
    """Test metrics in per cent, and the gain over the baseline.

    Args:
        tested: also say how sure the gain is over test images.
    """
    metrics = shown_metrics(comparisons)
    tuned = any(item.row.factor is not None for item in comparisons)
    names = [*NAMES, *(["weights"] if tuned else []), *metrics]
    names.append(f"gain over {baseline} (95 %)")
    names += ["over images (95 %)", "p (images)"] if tested else []
    headings = tuple(Heading(name) for name in (*names, "seeds"))
    lines = tuple(_line(item, metrics, tuned, tested) for item in comparisons)
    return Table(title, headings, lines, block=4, notes=notes_on(comparisons))


def shown_metrics(comparisons: Sequence[Comparison]) -> list[str]:
    """The leak-free accuracy is a column only where a test set leaks."""
    leaking = any(item.row.values.get(LEAK_FREE) for item in comparisons)
    return [METRICS[0], *([LEAK_FREE] if leaking else []), *METRICS[1:]]


def notes_on(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """What makes a row no fair comparison with its baseline."""
    notes = []
    for item in comparisons:
        if item.base is not None and item.unequal:
            differing = ", ".join(
                f"{name} {own} instead of {other}" for name, (own, other) in item.unequal.items()
            )
            notes.append(f"{item.row.method} is compared with {item.base.method} at {differing}.")
    return tuple(dict.fromkeys(notes))


def over_images(test: ImageTest | None) -> str:
    """The interval over test images, in points."""
    return "" if test is None else f"{100 * test.low:+.1f} to {100 * test.high:+.1f}"


def as_p(test: ImageTest | None) -> str:
    """A p-value, to two digits."""
    if test is None:
        return ""
    return f"{test.p:.2f}" if test.p >= 0.01 else f"{test.p:.1g}"


def _line(item: Comparison, metrics: Sequence[str], tuned: bool, tested: bool) -> tuple[Entry, ...]:
    row = item.row
    factor = [] if not tuned else [Entry("–" if row.factor is None else f"×{row.factor:g}")]
    shown = [metric_entry(item, metric) for metric in metrics]
    gain = [Entry(in_points(item.gain))]
    if tested:
        gain += [Entry(over_images(item.images)), Entry(as_p(item.images))]
    names = [Entry(name) for name in (*row.place, row.method)]
    return (*names, *factor, *shown, *gain, Entry(seeds_of(item)))


def metric_entry(item: Comparison, metric: str) -> Entry:
    """Mean ± std over seeds, or why there is none."""
    if values := item.row.values.get(metric):
        return as_percent(list(values.values()))
    return Entry("diverged" if item.row.diverged else "–")


def seeds_of(item: Comparison) -> str:
    """How many seeds there are, and which diverged."""
    seeds = str(max((len(values) for values in item.row.values.values()), default=0))
    if item.row.diverged:
        seeds += f" ({', '.join(map(str, item.row.diverged))} diverged)"
    return seeds
