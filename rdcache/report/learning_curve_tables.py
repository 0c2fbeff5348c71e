"""A learning curve as tables: for people, as Markdown, CSV, and one JSON object."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from rdcache.report.comparison import in_percent, in_points
from rdcache.report.learning_curve import BASELINE, Line

COLUMNS = ("dataset", "teacher", "student", "method", "images", "seeds")


def rows(lines: Sequence[Line]) -> list[list[str]]:
    """One table line a point, as people read it: in per cent, the gain in points."""
    return [
        [
            *line.panel,
            line.label,
            f"{point.images:.0f} ({100 * point.fraction:g} %)",
            in_percent(list(point.values.values())),
            in_points(point.gain),
            str(len(point.values)),
        ]
        for line in lines
        for point in line.points
    ]


def headings(metric: str) -> list[str]:
    """What stands above `rows`."""
    *names, seeds = COLUMNS
    return [*names, metric, f"gain over {BASELINE} (95 %)", seeds]


def as_markdown(lines: Sequence[Line], metric: str) -> str:
    """A Markdown table of `rows`."""
    columns = headings(metric)
    table = [columns, ["---"] * len(columns), *rows(lines)]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in table)


def as_csv(lines: Sequence[Line], metric: str) -> str:
    """The numbers themselves, as fractions, one line a point."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*COLUMNS[:4], "fraction", *COLUMNS[4:], metric, "std", "gain", "low", "high"])
    for line in lines:
        for it in line.points:
            gain = [it.gain.mean, it.gain.low, it.gain.high] if it.gain else [math.nan] * 3
            bounded = [value if math.isfinite(value) else "" for value in gain]
            numbers = [it.fraction, it.images, len(it.values), it.mean, it.std, *bounded]
            writer.writerow([*line.panel, line.label, *numbers])
    return text.getvalue()


def as_facts(lines: Sequence[Line], metric: str) -> dict[str, object]:
    """The same for one JSON object."""
    return {
        "metric": metric,
        "lines": [
            {
                "dataset": line.dataset,
                "teacher": line.teacher,
                "student": line.student,
                "method": line.method,
                "options": dict(line.options),
                "points": [
                    {
                        "fraction": point.fraction,
                        "images": point.images,
                        "mean": point.mean,
                        "std": point.std,
                        "values": dict(point.values),
                        "gain": vars(point.gain) if point.gain else None,
                        "note": point.note or None,
                    }
                    for point in line.points
                ],
            }
            for line in lines
        ],
    }
