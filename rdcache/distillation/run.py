"""A finished run: its folder, and what lies in it.

config.yaml           the resolved options, the store, and the seed
metrics.jsonl         one line of numbers an epoch
student.safetensors   the student of the selected epoch
teacher_branch.safetensors   the teacher branch, where the method has one
predictions.csv       its probabilities on the test images
result.json           metrics, counts, environment; written last
checkpoint.safetensors   only while the run is not finished
diverged.json         in place of a student, predictions and a result: how training diverged
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Literal

import yaml

from rdcache.errors import RunNotFoundError
from rdcache.models import Student, load_student
from rdcache.tasks import HEADLINES, TaskName, task_of

CONFIG, HISTORY, STUDENT = "config.yaml", "metrics.jsonl", "student.safetensors"
PREDICTIONS, RESULT, CHECKPOINT = "predictions.csv", "result.json", "checkpoint.safetensors"
TEACHER_BRANCH = "teacher_branch.safetensors"
SCHEMA = 1
FILES = (CONFIG, HISTORY, STUDENT, TEACHER_BRANCH, PREDICTIONS, RESULT, CHECKPOINT)


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a training that is finished: a student's, or an adapted teacher's.

    Attributes:
        path: its folder.
        status: how this call came by it.
    """

    path: Path
    status: Literal["trained", "resumed", "done before"] = "done before"

    @cached_property
    def result(self) -> dict[str, Any]:
        """Everything that was measured; `metrics` is its part about the test images."""
        content = _read(self.path / RESULT, json.loads, {"schema", "seed", "test", "dataset"})
        if content["schema"] != SCHEMA:
            raise RunNotFoundError(
                "this run was written by another version of rdcache.",
                file=self.path / RESULT,
                schema=f"{content['schema']}; this version reads {SCHEMA}",
            )
        return content

    @property
    def metrics(self) -> dict[str, Any]:
        """Test metrics of the selected epoch, as fractions: `accuracy`, `macro_f1`, …, or those of
        the run's task.
        """
        metrics: dict[str, Any] = self.result["test"]
        return metrics

    @property
    def metric(self) -> str:
        """The headline among the metrics: `accuracy`, `auroc` or `dice`."""
        return str(self.result.get("metric", HEADLINES[self.task[0]]))

    @property
    def task(self) -> tuple[TaskName, int]:
        """What the labels ask for, and the dimensions of what they are of."""
        return task_of(self.result)

    @cached_property
    def history(self) -> list[dict[str, Any]]:
        """One line of numbers for each epoch."""
        lines = (self.path / HISTORY).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return int(self.result["seed"])

    def __repr__(self) -> str:
        name = type(self).__name__
        value = self.metrics.get(self.metric)
        told = f"{self.metric} {value:.3f}" if isinstance(value, float) else f"no {self.metric}"
        return f"{name}({str(self.path)!r}, {told})"


@dataclass(frozen=True, repr=False)
class Run(FinishedRun):
    """One student, trained with one seed."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved options (`config`), the `store`, and the `seed`."""
        return _read(self.path / CONFIG, yaml.safe_load, {"config", "store", "seed"})

    @property
    def input_size(self) -> tuple[int, ...]:
        """What its student sees at once: sides in pixels, or voxels along z, y, x."""
        patch = self.result.get("views", {}).get("patch")
        sides = patch or [self.result["image_size"]] * self.task[1]
        return tuple(int(side) for side in sides)

    @cached_property
    def student(self) -> Student:
        """The trained student, an ordinary `torch.nn.Module`, on the CPU in evaluation mode."""
        return load_student(self.path / STUDENT)


def load_run(path: Path | str) -> Run:
    """Open the folder of a finished run.

    Raises:
        RunNotFoundError: no finished run lies there.
    """
    path = Path(path)
    if (path / RESULT).is_file():
        return Run(path)
    inside = sorted(found.parent.name for found in path.glob(f"*/{RESULT}"))
    if inside:
        raise RunNotFoundError(
            "this folder holds several runs, one for each seed.", folder=path, has=", ".join(inside)
        )
    unfinished = (path / CHECKPOINT).is_file()
    raise RunNotFoundError(
        "this run is not finished." if unfinished else "there is no run in this folder.",
        folder=path,
        looked_for=RESULT,
        **({"next": "the same `rdcache distill` with --resume"} if unfinished else {}),
    )


def _read(path: Path, parse: Callable[[str], Any], entries: set[str]) -> dict[str, Any]:
    """Read a file of a run.

    Raises:
        RunNotFoundError: it is missing, damaged, or lacks an entry.
    """
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunNotFoundError(
            "a file of this run cannot be read.", file=path, why=error.strerror
        ) from None
    except (ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict) or not entries <= content.keys():
        raise RunNotFoundError(
            "a file of this run is damaged.",
            file=path,
            next="the same `rdcache distill` with --overwrite",
        )
    return content


def summarise(runs: Sequence[FinishedRun]) -> dict[str, dict[str, float]]:
    """Mean and sample standard deviation of every number among the test metrics over runs.

    Returns:
        Metric name → `mean`, `std` (0 for a single run) and `n`, the number of runs that have it.
    """
    names = dict.fromkeys(
        name for run in runs for name, value in run.metrics.items() if isinstance(value, float)
    )
    summary = {}
    for name in names:
        values = [run.metrics[name] for run in runs if isinstance(run.metrics.get(name), float)]
        spread = stdev(values) if len(values) > 1 else 0.0
        summary[name] = {"mean": fmean(values), "std": spread, "n": len(values)}
    return summary
