"""Finding the students that were trained into some folders, whatever else lies there.

Runs of `rdcache adapt` share the folder `runs`, other programs write files called `result.json` as
well, and a run may be damaged or still under way: what is no finished student is told, not raised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from rdcache.distillation import Run
from rdcache.distillation.diverged import DIVERGED
from rdcache.distillation.run import CONFIG, PREDICTIONS, RESULT
from rdcache.errors import RdcacheError, RunNotFoundError

NEEDED = {"student", "method", "teacher", "dataset", "training", "test", "seed"}
NO_STUDENT = "an adapted teacher and no student"


@dataclass(frozen=True)
class DivergedRun:
    """A folder of a training that came to no student.

    Attributes:
        why: in a sentence.
        place: dataset, teacher as it is named in results, if the record says so.
        config: as `Run.config`.
    """

    path: Path
    why: str
    place: Mapping[str, Any]
    config: Mapping[str, Any]

    @property
    def seed(self) -> int:
        """The seed it was trained with."""
        return int(self.config["seed"])


@dataclass(frozen=True)
class Found:
    """What lies below some folders, each run once.

    Attributes:
        runs: finished students.
        diverged: trainings that came to none.
        unfinished: folders of runs that were interrupted, or are still going on.
        skipped: result file → why it is not the one of a student.
    """

    runs: tuple[Run, ...]
    diverged: tuple[DivergedRun, ...]
    unfinished: tuple[Path, ...]
    skipped: Mapping[Path, str]

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What was passed over, in a sentence for each kind."""
        by_reason: dict[str, list[Path]] = {}
        for path, why in self.skipped.items():
            by_reason.setdefault(why, []).append(path)
        notes = [f"left out, {why}: {_some(paths)}" for why, paths in by_reason.items()]
        if self.unfinished:
            notes.append(f"left out, not finished: {_some(self.unfinished)}")
        return tuple(notes)


def finished_students(folders: Sequence[Path]) -> Found:
    """Every finished run of `rdcache distill` in some folders, however deep.

    Raises:
        RunNotFoundError: one of the folders holds none.
    """
    runs: dict[Path, Run] = {}
    diverged: dict[Path, DivergedRun] = {}
    unfinished: dict[Path, Path] = {}
    skipped: dict[Path, str] = {}
    for folder in folders:
        here = 0
        for path in sorted(folder.rglob(RESULT)):
            run = Run(path.parent)
            if why := _no_student(run):
                skipped[path] = why
            else:
                runs.setdefault(path.parent.resolve(), run)
                here += 1
        for path in sorted(folder.rglob(DIVERGED)):
            if (path.parent / RESULT).is_file():
                continue
            try:
                if _of_adaptation(path):
                    skipped[path] = NO_STUDENT
                    continue
                diverged[path.parent.resolve()] = _diverged(path)
                here += 1
            except (
                OSError,
                ValueError,
                TypeError,
                KeyError,
                AttributeError,
                yaml.YAMLError,
            ):
                skipped[path] = "damaged"
        under_way = [
            path.parent
            for path in sorted(folder.rglob(CONFIG))
            if not any((path.parent / name).is_file() for name in (RESULT, DIVERGED))
        ]
        unfinished |= {path.resolve(): path for path in under_way}
        if not here:
            raise _nothing(folder, under_way)
    return Found(
        tuple(runs.values()), tuple(diverged.values()), tuple(unfinished.values()), skipped
    )


def _nothing(folder: Path, under_way: Sequence[Path]) -> RunNotFoundError:
    if under_way:
        return RunNotFoundError(
            "no run in this folder is finished.",
            folder=folder,
            unfinished=_some(under_way),
            next="the same command with --resume",
        )
    return RunNotFoundError(
        "there is no finished run in this folder.",
        folder=folder,
        next="rdcache distill --out FOLDER, or rdcache run RECIPE --out FOLDER",
    )


def _no_student(run: Run) -> str | None:
    """Why a result is not the one of a student; None where it is."""
    try:
        result = run.result
        if "student" not in result and "adapted" in result:
            return NO_STUDENT
        if not result.keys() >= NEEDED:
            return "not the result of a student"
        if not (run.path / PREDICTIONS).is_file():
            return "without its predictions"
        _require_facts(run.config, result)
        len(result["dataset"]["classes"])
        float(run.metrics["n"])
    except RdcacheError as error:
        return error.summary.rstrip(".")
    except (KeyError, TypeError, ValueError):
        return "damaged"
    return None


def _of_adaptation(record: Path) -> bool:
    return "adaptation" in dict(json.loads(record.read_text(encoding="utf-8")).get("of") or {})


def _diverged(path: Path) -> DivergedRun:
    """Read the folder of a training that diverged.

    Raises:
        OSError, ValueError, TypeError, KeyError, YAMLError: it is no such folder, or damaged.
    """
    record = json.loads(path.read_text(encoding="utf-8"))
    config = yaml.safe_load((path.parent / CONFIG).read_text(encoding="utf-8"))
    summary = str(record["summary"])  # a TypeError where the record is no mapping
    place = dict(record.get("of") or {})
    _require_facts(config, place) if place else _require_config(config)
    return DivergedRun(path.parent, summary, place, config)


def _require_config(config: Mapping[str, Any]) -> None:
    """Read what the room needs of a config.

    Raises:
        ValueError, TypeError, KeyError: it is not there.
    """
    str(config["config"]["method"])
    str(config["store"]["fingerprint"])
    int(config["seed"])


def _require_facts(config: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Read what the room needs of a config, and of what a result says of dataset and teacher.

    Raises:
        ValueError, TypeError, KeyError: it is not there.
    """
    _require_config(config)
    str(result["dataset"]["name"])
    str(result["teacher"]["name"])


def _some(paths: Sequence[Path]) -> str:
    """The first of some paths, and how many more there are."""
    more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
    return f"{paths[0]}{more}"
