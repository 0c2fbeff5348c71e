"""Rows of whatever runs lie in some folders.

Runs that differ in their seed alone make a row, whichever folder each of them lies in. Rows of one
method are told apart by the options in which they differ: `rd (beta=0)`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rdcache.distillation import Run
from rdcache.distillation.config import CIRCUMSTANCES
from rdcache.distillation.session import silently
from rdcache.report.finished import DivergedRun, Found, finished_students
from rdcache.report.rows import (
    LATER,
    PLAIN,
    Row,
    adaptation_told,
    data_of,
    distinguished,
    of_adapted,
    row_of,
    training_of,
)
from rdcache.tasks import HEADLINES, task_of

STORE = "store"


@dataclass(frozen=True)
class _Group:
    """Runs of one configuration.

    Attributes:
        place: dataset, teacher, student.
        kind: what its rows would be called if they had nothing to be told from.
        options: all that decides a run but its seed.
        adapted: what results say of the adaptation that made the teacher, if one did.
        headline: the metric of their task.
    """

    place: tuple[str, str, str]
    kind: str
    options: Mapping[str, Any]
    training: Mapping[str, Any]
    adapted: Mapping[str, Any]
    headline: str
    runs: dict[int, Run] = field(default_factory=dict)
    diverged: dict[int, str] = field(default_factory=dict)


def rows_of_folders(
    folders: Sequence[Path], on_note: Callable[[str], None] = silently
) -> list[Row]:
    """Rows of all finished runs in some folders: place by place, plain students first.

    Args:
        on_note: told what was left out: runs that are no finished students, or there twice.

    Raises:
        RunNotFoundError: no finished run lies in one of them.
    """
    found = finished_students(folders)
    for note in found.notes:
        on_note(note)
    groups = _groups(found, on_note)
    rows = []
    for group, label in zip(groups, _labels(groups), strict=True):
        row = row_of(
            group.place,
            group.kind,
            list(group.runs.values()),
            diverged=group.diverged,
            headline=group.headline,
        )
        if not group.runs:
            row = of_adapted(replace(row, training=group.training), group.adapted)
        rows.append(replace(row, method=row.method + label))
    return sorted(distinguished(rows), key=lambda it: (it.place, not it.is_of(PLAIN), it.method))


def _groups(found: Found, on_note: Callable[[str], None]) -> list[_Group]:
    """Runs and divergences of one configuration, together."""
    groups: dict[str, _Group] = {}
    known: dict[str, Mapping[str, Any]] = {}  # fingerprint → a result that names its place
    for run in sorted(found.runs, key=lambda run: bool(adaptation_told(run.result["teacher"]))):
        known.setdefault(run.config["store"]["fingerprint"], run.result)
        group = _group_of(groups, run.config, run.result)
        if run.seed in group.runs:
            if group.kind != PLAIN:
                on_note(f"seed {run.seed} of {group.kind} is there twice; left out: {run.path}")
        else:
            group.runs[run.seed] = run
    for each in found.diverged:
        place = _place_of(each, known)
        if place is None:
            on_note(f"left out, diverged, of an unknown dataset and teacher: {each.path}")
            continue
        group = _group_of(groups, each.config, place)
        if each.seed not in group.runs:
            group.diverged[each.seed] = each.why
    return list(groups.values())


def _group_of(
    groups: dict[str, _Group], config: Mapping[str, Any], result: Mapping[str, Any]
) -> _Group:
    """The group of a run, which may be the first of it."""
    options, chosen = _options(config), config["config"]
    teacher, method = result["teacher"], chosen["method"]
    student = chosen.get("student") or str(result.get("student", "–"))
    adapted = adaptation_told(teacher)
    of_teacher = adapted.get("teacher", teacher["name"])
    if method == PLAIN:  # the same student, whichever teacher's store its batches came from
        options |= data_of(result)
        deciding = {name: value for name, value in options.items() if name != STORE}
        who = [of_teacher] if data_of(result) else [of_teacher, options[STORE]]
    else:
        deciding, who = options, [teacher["name"]]
    key = json.dumps([result["dataset"]["name"], who, student, method, deciding], sort_keys=True)
    place = (result["dataset"]["name"], teacher["name"], student)
    headline = HEADLINES[task_of(result)[0]]
    return groups.setdefault(
        key, _Group(place, method, options, training_of(chosen), adapted, headline)
    )


def _place_of(
    each: DivergedRun, known: Mapping[str, Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """Dataset and teacher of a training that diverged: as recorded, or as other runs of its store
    have them.
    """
    if {"dataset", "teacher"} <= each.place.keys():
        return each.place
    return known.get(each.config["store"]["fingerprint"])


def _options(config: Mapping[str, Any]) -> dict[str, Any]:
    given = config["config"]
    left_out = CIRCUMSTANCES | {name for name in LATER if given.get(name) is None}
    chosen = {name: value for name, value in given.items() if name not in left_out}
    method_options = chosen.pop("method_options", {})
    return {**method_options, **chosen, STORE: config["store"]["fingerprint"][:8]}


def _labels(groups: Sequence[_Group]) -> list[str]:
    """For each group what tells it from others of its method: ` (beta=0)`, or nothing."""
    alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, group in enumerate(groups):
        alike[_kind(group)].append(index)
    labels = [""] * len(groups)
    for members in alike.values():
        options = [groups[index].options for index in members]
        telling = _telling(options)
        for index, own in zip(members, options, strict=True):
            told = ", ".join(f"{name}={own.get(name)}" for name in telling)
            labels[index] = f" ({told})" if told else ""
    return labels


def _kind(group: _Group) -> tuple[str, ...]:
    dataset, teacher, student = group.place
    how = "" if group.kind == PLAIN else group.adapted.get("method", "")
    return dataset, group.adapted.get("teacher", teacher), student, how, group.kind


def _telling(several: Sequence[Mapping[str, Any]]) -> list[str]:
    """As few options as tell all from each other; the store only if nothing else does."""
    names = list(dict.fromkeys(name for options in several for name in options))
    names.sort(key=lambda name: name == STORE)
    telling: list[str] = []
    for name in names:
        if len(_told(several, [*telling, name])) > len(_told(several, telling)):
            telling.append(name)
    return telling


def _told(several: Sequence[Mapping[str, Any]], names: Sequence[str]) -> set[str]:
    return {json.dumps([options.get(n) for n in names], default=str) for options in several}
