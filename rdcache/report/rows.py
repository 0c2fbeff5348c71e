"""Rows of a comparison, from finished runs: one dataset, teacher, student and method, all seeds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rdcache.distillation import Run
from rdcache.distillation.config import CIRCUMSTANCES
from rdcache.distillation.run import PREDICTIONS
from rdcache.models.student_teachers import FAMILY as STUDENT_TEACHER

METRICS = ("accuracy", "balanced_accuracy", "macro_f1", "auroc")
# What tables show of a task, by its headline, which comes first: fractions, of which more is
# better, and distances.
METRICS_BESIDE: Mapping[str, tuple[str, ...]] = {
    "accuracy": METRICS,
    "auroc": ("auroc", "average_precision", "accuracy"),
    "dice": ("dice", "iou", "nsd", "hd95"),
}
DISTANCES = frozenset({"hd95"})
LEAK_FREE = "accuracy_without_leaks"
PLAIN = "none"  # reads no teacher
LATER = ("nsd_tolerance",)  # options that there were not always
SETTLED = ("amp",)  # chosen for a student, a method and a machine, where it is not given
# What a comparison is about, or what follows from the store and the machine.
OF_THE_ROW = {"student", "method", "method_options", "teacher_head", "shuffle", *SETTLED}


@dataclass(frozen=True)
class Row:
    """One method on one dataset; metrics are fractions, one per seed.

    Attributes:
        method: what the row is called.
        values: metric name → seed → value, of the images of `split`.
        diverged: seeds with which training came to no student → why.
        runs: seed → folder of the run; predictions on the test images lie in it.
        leaked: uids of test images that also occur in training.
        training: the options that a fair comparison has in common, such as `epochs`, and `amp`.
        data: the same of the store: digest of the dataset, which views of it were cached.
        sizes: what is told of the dataset: `classes`, and numbers of `train`, `val`, `test` images.
        tuning: how the `factor` was chosen, as JSON values, if the weights were tuned.
        underlying: the method without what tells the row from others of that method.
        source: the teacher whose tensors were read, where that is an adapted one.
        headline: the metric of its task.
        distance_unit: of the metrics that are distances.
        validation: `values` of the validation images, which are what presets are to be chosen by.
        split: `test`, or `val` for a row that is told by its validation images.
    """

    dataset: str
    teacher: str
    student: str
    method: str
    values: Mapping[str, Mapping[int, float]]
    diverged: Mapping[int, str] = field(default_factory=dict)
    runs: Mapping[int, Path] = field(default_factory=dict)
    leaked: frozenset[str] = frozenset()
    training: Mapping[str, Any] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    tuning: Mapping[str, Any] | None = None
    underlying: str = ""
    source: str = ""
    headline: str = "accuracy"
    distance_unit: str = ""
    validation: Mapping[str, Mapping[int, float]] = field(default_factory=dict)
    split: Literal["test", "val"] = "test"

    @property
    def place(self) -> tuple[str, str, str]:
        """What a row has in common with those that it can be compared with."""
        return self.dataset, self.teacher, self.student

    @property
    def factor(self) -> float | None:
        """What the method's reference weights were multiplied with, if they were tuned."""
        return None if self.tuning is None else float(self.tuning["factor"])

    @property
    def metrics(self) -> tuple[str, ...]:
        """What tables show of its task, the headline first."""
        return METRICS_BESIDE.get(self.headline, (self.headline,))

    @property
    def leak_free(self) -> str:
        """The headline over the test images that do not occur in training."""
        return leak_free(self.headline)

    @property
    def seeds(self) -> set[int]:
        """Those with which anything was measured."""
        return {seed for values in self.values.values() for seed in values}

    @property
    def predictions(self) -> dict[int, Path]:
        """Seed → file of predictions on the test images."""
        return {seed: folder / PREDICTIONS for seed, folder in self.runs.items()}

    def is_of(self, method: str) -> bool:
        """Whether it is a row of a method, whatever it is called."""
        return method == (self.underlying or self.method)

    def trained_as(self, other: Row) -> bool:
        """Whether two rows have options of training and data in common. Of what each machine
        settles by itself nothing is asked; a table says where it differs.
        """
        return self._conditions() == other._conditions()

    def _conditions(self) -> tuple[object, ...]:
        training = {name: it for name, it in self.training.items() if name not in SETTLED}
        return training, self.data, self.sizes, self.leaked


def row_of(
    place: tuple[str, str, str],
    method: str,
    runs: Sequence[Run],
    diverged: Mapping[int, str] | None = None,
    tuning: Mapping[str, Any] | None = None,
    headline: str = "accuracy",
) -> Row:
    """Collect what the runs of a row have measured. Of a teacher that `rdcache adapt` has made of
    another, the row is of that other one, and its method `lora + kd`.

    Args:
        place: dataset, teacher, student.
        method: what the row is called.
        diverged: seed → why, of those that came to no student.
        tuning: as `Row.tuning`.
        headline: the metric of the task, where no run is there to tell.
    """
    first = runs[0] if runs else None
    row = Row(
        *place,
        method,
        _values(runs),
        dict(diverged or {}),
        runs={run.seed: run.path for run in runs},
        leaked=frozenset(first.result.get("leaked_test_uids", ())) if first else frozenset(),
        training=training_of(first.config["config"]) if first else {},
        data=data_of(first.result) if first else {},
        sizes=_sizes(first.result) if first else {},
        tuning=tuning,
        underlying=first.result["method"] if first else method,
        headline=first.metric if first else headline,
        distance_unit=str(first.metrics.get("distance_unit", "")) if first else "",
        validation=_validation_values(runs),
    )
    return of_adapted(row, adaptation_told(first.result["teacher"]) if first else {})


def adaptation_told(teacher: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a result says of the adaptation that made its teacher; nothing of others.

    A student that became a teacher is one in its own right: whoever taught it may have been of
    another kind altogether, or have said nothing.
    """
    adapted: Mapping[str, Any] = teacher.get("adapted") or {}
    return {} if adapted.get("method") == STUDENT_TEACHER else adapted


def of_adapted(row: Row, adapted: Mapping[str, Any]) -> Row:
    """The row as one of the teacher that was adapted, where that is what the result says."""
    if not adapted:
        return row
    row = replace(row, teacher=adapted["teacher"], source=row.teacher)
    if row.underlying == PLAIN:  # which read neither
        return row
    how = adapted["method"]
    return replace(row, method=f"{how} + {row.method}", underlying=f"{how} + {row.underlying}")


def distinguished(rows: Sequence[Row]) -> list[Row]:
    """The rows, no two of one place by one name.

    The plain student of an adapted teacher is that of the teacher itself, if both were trained
    alike, and stands there once. Others of one name, as by two adaptations of one kind, get the
    name of what they have read, or a number.
    """
    own = [row for row in rows if not row.source]
    kept = [row for row in rows if not _stands_elsewhere(row, [*own, *rows])]
    for tell in (_with_source, _with_number):
        taken: dict[tuple[str, ...], list[int]] = {}
        for index, row in enumerate(kept):
            taken.setdefault((*row.place, row.method), []).append(index)
        for same in taken.values():
            for number, index in enumerate(same, 1):
                if len(same) > 1:
                    kept[index] = tell(kept[index], number)
    return kept


def training_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """How a row was trained: `training_options`, and what was settled."""
    settled = {name: config[name] for name in SETTLED if name in config}
    return {**training_options(config), **settled}


def training_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run that a fair comparison has in common. Those that older runs do not know
    are told where they are given.
    """
    left_out = CIRCUMSTANCES | OF_THE_ROW
    left_out |= {name for name in LATER if config.get(name) is None}
    return {name: value for name, value in config.items() if name not in left_out}


def data_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the images and their cached views were, whichever teacher has seen them."""
    facts = {}
    if digest := result["dataset"].get("digest"):
        facts["dataset digest"] = str(digest)[:12]
    views = result.get("views")
    if isinstance(views, Mapping):
        facts |= {f"cached views' {name}": value for name, value in views.items()}
    return facts


def _stands_elsewhere(row: Row, others: Iterable[Row]) -> bool:
    """Whether a row is of a plain student that the first like it stands for already."""
    if not row.is_of(PLAIN):
        return False
    alike = (
        other
        for other in others
        if (*other.place, other.method) == (*row.place, row.method)
        and other.is_of(PLAIN)
        and other.trained_as(row)
    )
    return row.source != "" and next(alike, row) is not row


def _with_source(row: Row, number: int) -> Row:
    return replace(row, method=f"{row.method} ({row.source})") if row.source else row


def _with_number(row: Row, number: int) -> Row:
    return replace(row, method=f"{row.method} ({number})")


def _values(runs: Sequence[Run]) -> dict[str, dict[int, float]]:
    """Metric → seed → value, of the test images. Where none leaks, the leak-free headline is the
    headline.
    """
    metrics = {}
    for run in runs:
        metrics[run.seed] = of_run = dict(run.metrics)
        if not run.result.get("leaked_test_uids"):
            of_run.setdefault(leak_free(run.metric), of_run.get(run.metric))
    return _by_metric(runs, metrics)


def _validation_values(runs: Sequence[Run]) -> dict[str, dict[int, float]]:
    """Metric → seed → value, of the validation images where there were any."""
    return _by_metric(runs, {run.seed: run.result.get("val") or {} for run in runs})


def _by_metric(
    runs: Sequence[Run], metrics: Mapping[int, Mapping[str, Any]]
) -> dict[str, dict[int, float]]:
    """Metric → seed → value, of those that tables show.

    Args:
        metrics: seed → metric → value.
    """
    values: dict[str, dict[int, float]] = {}
    for run in runs:
        headline = run.metric
        for name in (*METRICS_BESIDE.get(headline, (headline,)), leak_free(headline)):
            if isinstance(value := metrics[run.seed].get(name), float):
                values.setdefault(name, {})[run.seed] = value
    return values


def told_by_validation(row: Row) -> Row:
    """The row with what its runs have measured on validation images, for choosing among methods
    while the test images are not looked at.
    """
    return replace(row, values=row.validation, split="val")


def leak_free(headline: str) -> str:
    """What a headline is called over the test images that do not occur in training."""
    return f"{headline}_without_leaks"


def _sizes(result: Mapping[str, Any]) -> dict[str, int]:
    return {
        "classes": len(result["dataset"]["classes"]),
        "train": (result.get("training") or {}).get("samples", 0),
        "val": (result.get("val") or {}).get("n", 0),
        "test": result["test"]["n"],
    }
