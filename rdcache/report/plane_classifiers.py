"""The classifiers of finished runs, for images that are in no store: the students, and the teacher
branches that taught them, with the live teacher before them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Literal

import torch

from rdcache.data import ImageDataset
from rdcache.distillation.hardware import autocast_for
from rdcache.distillation.run import Run
from rdcache.distillation.teacher_branch import load_teacher_branch
from rdcache.errors import RdcacheError
from rdcache.extraction.live_taps import LiveTaps, load_live_taps
from rdcache.methods import Method
from rdcache.models import Preprocessing
from rdcache.store import JointStore, Location, Store, open_store
from rdcache.store.joint import joint_fingerprint

PLAIN = "none"  # the method of students that learn from labels alone
Note = Callable[[str], None]


@dataclass(frozen=True)
class Panel:
    """One classifier.

    Attributes:
        title: what tells it from the others.
        run: of which it is.
    """

    title: str
    kind: Literal["teacher branch", "student"]
    run: Run


@dataclass(frozen=True)
class Classifiers:
    """Classifiers that look at the same images, and share what they compute of them first.

    Attributes:
        looks: size, interpolation and normalisation of their input; one for each teacher.
        classify: from float32 (B, S, S, 3), RGB in 0–255, for each of the looks, to int64
            (classifiers, B) on the CPU.
    """

    panels: tuple[Panel, ...]
    looks: tuple[Preprocessing, ...]
    classify: Callable[[Sequence[torch.Tensor]], torch.Tensor]


@dataclass(frozen=True)
class TeachersHere:
    """Where the teachers and the stores of runs are on this machine.

    Attributes:
        names: of teachers that are files, as `torchscript:FILE`, which no store knows.
        weights: a weight file, for a teacher whose weights were given so.
        stores: stores that lie elsewhere now than when runs were made from them.
    """

    names: tuple[str, ...] = ()
    weights: str | None = None
    stores: tuple[Location, ...] = ()
    data_dir: Path | None = None


def students_of(runs: Sequence[Run], device: torch.device) -> list[Classifiers]:
    """The student of each run, which looks at images as in the run's evaluation."""
    return [_student(run, title, device) for run, title in zip(runs, titles(runs), strict=True)]


def _student(run: Run, title: str, device: torch.device) -> Classifiers:
    student = run.student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    look = Preprocessing(int(run.result["image_size"]), student.mean, student.std)
    autocast = autocast_for(device, run.config["config"]["amp"])

    @torch.no_grad()
    def classify(images: Sequence[torch.Tensor]) -> torch.Tensor:
        inputs = look.normalise(images[0].to(device)).contiguous(memory_format=torch.channels_last)
        with autocast():
            return student(inputs).logits.argmax(dim=1).cpu()[None]

    title = "plain student" + title.removeprefix(PLAIN) if _is_plain(run) else f"{title} student"
    return Classifiers((Panel(title, "student", run),), (look,), classify)


def branches_of(
    runs: Sequence[Run],
    dataset: ImageDataset,
    here: TeachersHere,
    device: torch.device,
    on_note: Note,
) -> list[Classifiers]:
    """The teacher branches of those runs that kept one; of runs from one store, together.

    Args:
        on_note: told, in a sentence, which are left out, and why: their teacher or their store
            cannot be had here.
    """
    given = [open_store(location) for location in here.stores]
    at_hand: dict[str, Store] = {}
    of_store: dict[str, list[tuple[Panel, Method]]] = {}
    for run, title in zip(runs, titles(runs), strict=True):
        if not run.result.get("test_teacher_branch"):
            continue
        panel = Panel(f"{title} teacher branch", "teacher branch", run)
        fingerprint = run.result["store"]["fingerprint"]
        try:
            if fingerprint not in at_hand:
                at_hand[fingerprint] = _store_of(run, given)
            method = load_teacher_branch(run, at_hand[fingerprint], dataset)
        except RdcacheError as error:
            on_note(left_out([panel], error))
            continue
        of_store.setdefault(fingerprint, []).append((panel, method.to(device)))
    groups = []
    for fingerprint, members in of_store.items():
        try:
            live = load_live_taps(
                at_hand[fingerprint],
                here.names,
                here.weights,
                here.data_dir,
                device,
                names={tap for _, method in members for tap in method.branch_taps},
            )
        except RdcacheError as error:
            on_note(left_out([panel for panel, _ in members], error))
            continue
        groups.append(_branches(live, members, device))
    return groups


def _store_of(run: Run, given: Sequence[Store]) -> Store:
    """The store that a run was made from, or the stores, in their order: those of the given ones
    whose fingerprints say so, else where they then lay.
    """
    recorded = run.result["store"]
    places = recorded.get("members", [recorded["location"]])
    if found := _made_of(run, given, len(places)):
        return found
    if given and (found := _made_of(run, [*given, *_still_there(places)], len(places))):
        return found
    members = [open_store(place) for place in places]
    return members[0] if len(members) == 1 else JointStore(members)


def _made_of(run: Run, stores: Sequence[Store], count: int) -> Store | None:
    """So many of these stores, in the order that gives the fingerprint of the run's."""
    for members in permutations(stores, count):
        fingerprint = joint_fingerprint(members) if count > 1 else members[0].fingerprint
        if fingerprint.digest == run.result["store"]["fingerprint"]:
            return JointStore(members) if count > 1 else members[0]
    return None


def _still_there(places: Sequence[str]) -> list[Store]:
    found = []
    for place in places:
        with suppress(RdcacheError):
            found.append(open_store(place))
    return found


def _branches(
    live: Sequence[LiveTaps], members: Sequence[tuple[Panel, Method]], device: torch.device
) -> Classifiers:
    names = list(dict.fromkeys(tap for _, method in members for tap in method.branch_taps))

    @torch.no_grad()
    def classify(images: Sequence[torch.Tensor]) -> torch.Tensor:
        taps: dict[str, torch.Tensor] = {}
        for each, seen in zip(live, images, strict=True):
            taps |= {name: tap.to(device) for name, tap in each.of(seen, names).items()}
        return torch.stack(
            [method.teacher_branch(taps)[1].argmax(dim=1).cpu() for _, method in members]
        )

    panels = tuple(panel for panel, _ in members)
    return Classifiers(panels, tuple(each.teacher.of_images for each in live), classify)


def titles(runs: Sequence[Run]) -> list[str]:
    """The shortest names that tell runs apart: the method, and where needed student, teacher and
    seed; of runs that still are alike, the folder.
    """
    parts: list[Callable[[Run], str]] = [
        lambda run: str(run.result["method"]),
        lambda run: str(run.result["student"]),
        lambda run: str(run.result["teacher"]["name"]),
        lambda run: f"seed {run.seed}",
        lambda run: f"{run.path.parent.name}/{run.path.name}",
    ]
    names = [parts[0](run) for run in runs]
    for part in parts[1:]:
        if len(set(names)) == len(names):
            break
        added = [part(run) for run in runs]
        if len(set(added)) > 1:
            names = [f"{name}, {more}" for name, more in zip(names, added, strict=True)]
    return names


def _is_plain(run: Run) -> bool:
    return bool(run.result["method"] == PLAIN)


def left_out(panels: Sequence[Panel], error: RdcacheError) -> str:
    """A sentence about classifiers that cannot be had here, or that fail on these images."""
    names = ", ".join(panel.title for panel in panels)
    facts = "; ".join(f"{name}: {value}" for name, value in error.facts.items())
    return f"left out: {names}. {error.summary}" + (f" ({facts})" if facts else "")
