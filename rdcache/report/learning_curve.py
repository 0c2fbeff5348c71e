"""Accuracy against the number of training images, from finished runs with `train_fraction`.

Runs are sorted into lines (one method with one set of options), lines into points (one size of the
training set, several seeds). At each size a line is paired, seed by seed, with the plain student
that was trained on the very same images.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rdcache.distillation import Run
from rdcache.distillation.config import CIRCUMSTANCES
from rdcache.distillation.run import RESULT
from rdcache.errors import RunNotFoundError, UsageError
from rdcache.report.comparison import in_percent, in_points
from rdcache.report.significance import Gain, paired_gain

BASELINE = "none"
COLUMNS = ("dataset", "teacher", "student", "method", "images", "seeds")
# Options by which a run has its place on a curve, and names that are the curve's own.
_PLACE = {"student", "method", "method_options", "train_fraction", *CIRCUMSTANCES}


@dataclass(frozen=True)
class Point:
    """A line at one size of the training set.

    Attributes:
        fraction: of all training images.
        images: how many these are; the mean over seeds, which groups make differ a little.
        values: seed → the metric, a fraction.
        gain: over the plain student of the same images, if it was trained.
    """

    fraction: float
    images: float
    values: Mapping[int, float]
    gain: Gain | None = None

    @property
    def mean(self) -> float:
        """Over seeds."""
        return fmean(self.values.values())

    @property
    def std(self) -> float:
        """Sample standard deviation over seeds; 0 for a single one."""
        return stdev(self.values.values()) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Line:
    """One method on one dataset, by the size of its training set.

    Attributes:
        options: those that tell it from other lines of the same method, as text.
        points: ascending.
    """

    dataset: str
    teacher: str
    student: str
    method: str
    options: Mapping[str, str]
    points: tuple[Point, ...]

    @property
    def panel(self) -> tuple[str, str, str]:
        """What is compared within: dataset, teacher and student."""
        return self.dataset, self.teacher, self.student

    @property
    def label(self) -> str:
        """The method, and where there are several lines of it what tells this one from them."""
        told = ", ".join(f"{name} {value}" for name, value in self.options.items())
        return f"{self.method} ({told})" if told else self.method


def runs_below(folder: Path) -> list[Run]:
    """Every finished run of `distill` in a folder, however deep. What is none is passed over.

    Raises:
        RunNotFoundError: there is none.
    """
    found = [run for path in sorted(folder.rglob(RESULT)) if _is_whole(run := Run(path.parent))]
    if not found:
        raise RunNotFoundError(
            "there is no finished run in this folder.",
            folder=folder,
            next="rdcache distill --train-fraction 0.25 --seed 0,1,2 …",
        )
    return found


def _is_whole(run: Run) -> bool:
    try:
        return {"student", "method", "teacher", "training"} <= run.result.keys() and bool(
            run.config
        )
    except RunNotFoundError:
        return False


def learning_curve(runs: Iterable[Run], metric: str = "accuracy") -> list[Line]:
    """Sort runs into lines and pair each with the plain student.

    Runs of one method that differ, at the same size, in any other option are lines of their own.

    Args:
        metric: a number among the test metrics.

    Raises:
        UsageError: no run has this metric.
    """
    cells: dict[tuple[str, ...], list[Run]] = defaultdict(list)
    for run in runs:
        if isinstance(run.metrics.get(metric), float):
            result = run.result
            names = (result["dataset"]["name"], result["teacher"]["name"])
            cells[*names, result["student"], result["method"]].append(run)
    if not cells:
        raise UsageError(f"no run has a test metric named {metric!r}.")
    lines = [line for cell, of_it in cells.items() for line in _lines(cell, of_it, metric)]
    return [_paired(line, lines) for line in lines]


def _lines(cell: tuple[str, ...], runs: Sequence[Run], metric: str) -> list[Line]:
    dataset, teacher, student, method = cell
    options = {run.path: _options(run) for run in runs}
    telling = _telling([(_fraction(run), options[run.path]) for run in runs])
    sorted_runs: dict[tuple[str, ...], dict[float, list[Run]]] = defaultdict(dict)
    for run in runs:
        key = tuple(options[run.path].get(name, "–") for name in telling)
        sorted_runs[key].setdefault(_fraction(run), []).append(run)
    return [
        Line(
            *(dataset, teacher, student, method),
            dict(zip(telling, values, strict=True)),
            tuple(_point(part, at, metric) for part, at in sorted(by_fraction.items())),
        )
        for values, by_fraction in sorted(sorted_runs.items())
    ]


def _point(fraction: float, runs: Sequence[Run], metric: str) -> Point:
    images = fmean(run.result["training"]["samples"] for run in runs)
    return Point(fraction, images, {run.seed: run.metrics[metric] for run in runs})


def _fraction(run: Run) -> float:
    return float(run.config["config"].get("train_fraction", 1.0))


def _options(run: Run) -> dict[str, str]:
    """Everything that decides a run beside its place on a curve, as text."""
    config: dict[str, Any] = run.config["config"]
    values = {name: value for name, value in config.items() if name not in _PLACE}
    values |= config.get("method_options", {})
    values["store"] = run.config["store"]["fingerprint"][:8]
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in values.items()
    }


def _telling(runs: Sequence[tuple[float, Mapping[str, str]]]) -> list[str]:
    """The options that differ between runs of one size. One that differs between sizes alone, as
    more epochs for fewer images, belongs to the curve.
    """
    seen: dict[tuple[float, str], set[str]] = defaultdict(set)
    for fraction, options in runs:
        for name, value in options.items():
            seen[fraction, name].add(value)
    return sorted({name for (_, name), values in seen.items() if len(values) > 1})


def _paired(line: Line, lines: Sequence[Line]) -> Line:
    """The line with its gain over the plain student at each size; the baseline has none."""
    plain = [other for other in lines if other.method == BASELINE and _beside(other, line)]
    if line.method == BASELINE or len(plain) != 1:
        return line
    at = {point.fraction: point.values for point in plain[0].points}
    points = [
        Point(it.fraction, it.images, it.values, paired_gain(it.values, at.get(it.fraction, {})))
        for it in line.points
    ]
    names = (line.dataset, line.teacher, line.student, line.method)
    return Line(*names, line.options, tuple(points))


def _beside(plain: Line, line: Line) -> bool:
    common = plain.options.keys() & line.options.keys()
    same = all(plain.options[name] == line.options[name] for name in common)
    return plain.panel == line.panel and same


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
            gain = [it.gain.mean, it.gain.low, it.gain.high] if it.gain else ["", "", ""]
            numbers = [it.fraction, it.images, len(it.values), it.mean, it.std, *gain]
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
                    }
                    for point in line.points
                ],
            }
            for line in lines
        ],
    }
