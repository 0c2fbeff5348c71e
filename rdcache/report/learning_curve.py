"""Accuracy, or another metric, against the number of training images, from finished runs with
`train_fraction`.

Runs are sorted into lines (one method with one set of options), lines into points (one size of the
training set, several seeds). At each size a line is paired, seed by seed, with the plain student
that was trained alike on the very same images. What the tables and the picture look like is left to
`learning_curve_tables.py` and `learning_curve_picture.py`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from rdcache.distillation import Run
from rdcache.distillation.config import CIRCUMSTANCES
from rdcache.distillation.run import RESULT
from rdcache.errors import RunNotFoundError, UsageError
from rdcache.report.rows import LATER, PLAIN, training_options
from rdcache.report.significance import Gain, paired_gain

BASELINE = PLAIN
# Options by which a run has its place on a curve, and names that are the curve's own.
_PLACE = {"student", "method", "method_options", "train_fraction", *CIRCUMSTANCES}
_SETTLED = ("amp", "shuffle")  # which no comparison can ask to be equal: see `training_options`


@dataclass(frozen=True)
class Point:
    """A line at one size of the training set.

    Attributes:
        fraction: of all training images.
        images: how many these are; the mean over seeds, which groups make differ a little.
        values: seed → the metric, a fraction.
        conditions: what runs that are compared must have in common: the store, the seed of the
            part, and the options of the training.
        settled: options that follow from the method and the machine, as `amp`.
        gain: over the plain student of the same images that was trained alike.
        note: why there is no gain though there are plain students of this size.
    """

    fraction: float
    images: float
    values: Mapping[int, float]
    conditions: Mapping[str, Any] = field(default_factory=dict)
    settled: Mapping[str, Any] = field(default_factory=dict)
    gain: Gain | None = None
    note: str = ""

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


def headline_of(runs: Sequence[Run]) -> str:
    """The metric of the runs' task.

    Raises:
        UsageError: they are of several tasks.
    """
    metrics = list(dict.fromkeys(run.metric for run in runs))
    if len(metrics) > 1:
        raise UsageError(
            "these runs are of several tasks, and a curve is of one metric.",
            metrics=", ".join(metrics),
            next=f"--metric {metrics[0]}",
        )
    return metrics[0]


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
    """Runs that differ in their seed alone, but for where they were made."""
    images = fmean(run.result["training"]["samples"] for run in runs)
    values = {run.seed: run.metrics[metric] for run in runs}
    config = runs[0].config["config"]
    conditions = training_options(config)
    conditions["store"] = runs[0].config["store"]["fingerprint"][:8]
    if fraction == 1:
        conditions.pop("subset_seed", None)
    settled = {name: config.get(name) for name in _SETTLED}
    return Point(fraction, images, values, conditions, settled)


def _fraction(run: Run) -> float:
    return float(run.config["config"].get("train_fraction", 1.0))


def _options(run: Run) -> dict[str, str]:
    """Everything that decides a run beside its place on a curve, as text."""
    config: dict[str, Any] = run.config["config"]
    left_out = _PLACE | {name for name in LATER if config.get(name) is None}
    values = {name: value for name, value in config.items() if name not in left_out}
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
    if line.method == BASELINE:
        return line
    plain = [other for other in lines if other.method == BASELINE and other.panel == line.panel]
    points = []
    for it in line.points:
        beside = [
            point for other in plain for point in other.points if it.fraction == point.fraction
        ]
        points.append(_with_gain(it, beside) if beside else it)
    return replace(line, points=tuple(points))


def _with_gain(point: Point, plain: Sequence[Point]) -> Point:
    """The point beside the one of several plain ones that was trained as it was."""
    fitting = [other for other in plain if other.conditions == point.conditions]
    if len(fitting) > 1:
        fitting = [other for other in fitting if other.settled == point.settled] or fitting
    if not fitting:
        unequal = min((_unequal(point, other) for other in plain), key=len)
        told = ", ".join(f"{name} {own} instead of {other}" for name, own, other in unequal)
        return replace(point, note=f"the plain student was not trained alike: {told}")
    if len(fitting) > 1:
        return replace(point, note=f"{len(fitting)} lines of plain students fit it")
    gain = paired_gain(point.values, fitting[0].values)
    note = "" if gain else "no seed in common with the plain student"
    return replace(point, gain=gain, note=note)


def _unequal(point: Point, plain: Point) -> list[tuple[str, Any, Any]]:
    """Conditions that differ: name, the point's value, the plain one's."""
    own, other = point.conditions, plain.conditions
    names = sorted(own.keys() | other.keys())
    return [(it, own.get(it), other.get(it)) for it in names if own.get(it) != other.get(it)]


def notes_on(lines: Sequence[Line]) -> list[str]:
    """Why points have no gain, in a sentence each."""
    return [
        f"no gain of {line.label} at {100 * point.fraction:g} % of {line.dataset}: {point.note}"
        for line in lines
        for point in line.points
        if point.note
    ]
