"""Rows of a comparison, from finished runs: one dataset, teacher, student and method, all seeds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rdcache.distillation import Run
from rdcache.distillation.config import CIRCUMSTANCES
from rdcache.distillation.diverged import DIVERGED
from rdcache.distillation.run import PREDICTIONS, RESULT
from rdcache.errors import RunNotFoundError

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
LEAK_FREE = "accuracy_without_leaks"
PLAIN = "none"  # reads no teacher
# What a comparison is about, or what follows from the store and the machine.
OF_THE_ROW = {"student", "method", "method_options", "teacher_head", "amp", "shuffle"}


@dataclass(frozen=True)
class Row:
    """One method on one dataset; metrics are fractions, one per seed.

    Attributes:
        values: metric name → seed → value.
        factor: what the method's reference weights were multiplied with, if they were tuned.
        diverged: seeds with which training came to no student.
        predictions: seed → file of predictions on the test images.
        leaked: uids of test images that also occur in training.
        training: the options that a fair comparison has in common, such as `epochs`.
        sizes: what is told of the dataset: `classes`, and numbers of `train`, `val`, `test` images.
        tuning: how the factor was chosen, as JSON values.
    """

    dataset: str
    teacher: str
    student: str
    method: str
    values: Mapping[str, Mapping[int, float]]
    factor: float | None = None
    diverged: tuple[int, ...] = ()
    predictions: Mapping[int, Path] = field(default_factory=dict)
    leaked: frozenset[str] = frozenset()
    training: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    tuning: Mapping[str, Any] | None = None

    @property
    def place(self) -> tuple[str, str, str]:
        """What a row has in common with those that it can be compared with."""
        return self.dataset, self.teacher, self.student


def row_of(
    place: tuple[str, str, str],
    method: str,
    runs: Sequence[Run],
    factor: float | None = None,
    diverged: tuple[int, ...] = (),
) -> Row:
    """Collect what the runs of a row have measured. Of a teacher that `rdcache adapt` has made of
    another, the row is of that other one, and its method `lora + kd`.

    Args:
        place: dataset, teacher, student.
        method: what the row is called.
    """
    if runs and (adapted := runs[0].result["teacher"].get("adapted")):
        place = (place[0], adapted["teacher"], place[2])
        method = method if method == PLAIN else f"{adapted['method']} + {method}"
    values: dict[str, dict[int, float]] = {}
    for run in runs:
        for name in (*METRICS, LEAK_FREE):
            if isinstance(value := run.metrics.get(name), float):
                values.setdefault(name, {})[run.seed] = value
    first = runs[0] if runs else None
    return Row(
        *place,
        method,
        values,
        factor,
        diverged,
        predictions={run.seed: run.path / PREDICTIONS for run in runs},
        leaked=frozenset(first.result.get("leaked_test_uids", ())) if first else frozenset(),
        training=training_options(first.config["config"]) if first else {},
        sizes=_sizes(first.result) if first else {},
    )


def rows_of_folders(folders: Sequence[Path]) -> list[Row]:
    """Rows of all finished runs in some folders: place by place, plain students first.

    Runs that differ in their seed alone make a row. Where a method was run with several sets of
    options, its rows are called by what differs: `rd (beta=0)`.

    Raises:
        RunNotFoundError: no finished run lies in one of them.
    """
    groups: dict[Path, list[Run]] = {}
    for folder in folders:
        found = sorted(path.parent for path in folder.rglob(RESULT))
        if not found:
            raise RunNotFoundError("there is no finished run in this folder.", folder=folder)
        for path in found:
            runs = groups.setdefault(path.parent.resolve(), [])
            if all(path.resolve() != run.path.resolve() for run in runs):
                runs.append(Run(path))
    labels = _labels(groups)
    rows = [
        row_of(_place(runs[0]), labels[group], runs, diverged=_diverged_in(group))
        for group, runs in groups.items()
    ]
    return sorted(rows, key=lambda row: (row.place, not row.method.startswith(PLAIN), row.method))


def _place(run: Run) -> tuple[str, str, str]:
    result = run.result
    return result["dataset"]["name"], result["teacher"]["name"], result["student"]


def _labels(groups: Mapping[Path, Sequence[Run]]) -> dict[Path, str]:
    """A name for each group of runs: its method, and what tells it from others of its method."""
    alike: dict[tuple[str, ...], list[Path]] = defaultdict(list)
    for group, (first, *_) in groups.items():
        adapted = first.result["teacher"].get("adapted", {"teacher": _place(first)[1]})
        kind = (_place(first)[0], adapted["teacher"], _place(first)[2], adapted.get("method", ""))
        alike[(*kind, first.result["method"])].append(group)
    labels = {}
    for (*_, method), members in alike.items():
        options = {group: _options(groups[group][0]) for group in members}
        differing = _differing(options.values())
        for group in members:
            own = ", ".join(f"{name}={options[group].get(name)}" for name in differing)
            labels[group] = f"{method} ({own})" if own else method
    return labels


def _differing(several: Iterable[Mapping[str, Any]]) -> list[str]:
    """Names whose values are not the same everywhere; the store's only if nothing else tells."""
    several = list(several)
    names = dict.fromkeys(name for options in several for name in options)
    differing = [n for n in names if any(o.get(n) != several[0].get(n) for o in several)]
    return [name for name in differing if name != "store"] or differing


def _options(run: Run) -> dict[str, Any]:
    config = run.config["config"]
    own = {name: value for name, value in config.items() if name not in CIRCUMSTANCES}
    method_options = own.pop("method_options", {})
    return {**method_options, **own, "store": run.config["store"]["fingerprint"][:8]}


def training_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that a fair comparison has in common."""
    left_out = CIRCUMSTANCES | OF_THE_ROW
    return {name: value for name, value in config.items() if name not in left_out}


def _sizes(result: Mapping[str, Any]) -> dict[str, int]:
    return {
        "classes": len(result["dataset"]["classes"]),
        "train": result.get("training", {}).get("samples", 0),
        "val": result.get("val", {}).get("n", 0),
        "test": result["test"]["n"],
    }


def _diverged_in(group: Path) -> tuple[int, ...]:
    seeds = (path.parent.name.removeprefix("seed") for path in group.glob(f"seed*/{DIVERGED}"))
    return tuple(sorted(int(seed) for seed in seeds if seed.isdecimal()))
