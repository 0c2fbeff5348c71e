"""Several stores of one dataset read in step: one sample number, one view, the taps of all.

A joint store is read as any store is. A tap's name there is `<teacher>.<tap>`, which is legal
wherever a tap's name is. Nothing is copied: every tensor is gathered from the store it lies in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import zarr

from rdcache.errors import UsageError
from rdcache.store.catalogue import folder_name
from rdcache.store.reader import Store
from rdcache.store.spec import STORED, Fingerprint, StoreLayout, TapSpec

JOINED_BY = "+"


class JointStore(Store):
    """Several stores as one. What is available is what all of them hold; of stores with unlike
    numbers of views the first ones that all have.

    `location` and the dataset's part of the manifest are those of the first member, `where` names
    all. It has no `objects` of its own.

    Args:
        members: at least two, of different teachers.

    Raises:
        UsageError: they are not of the very same images, splits or views, or two are of one
            teacher.
    """

    def __init__(self, members: Sequence[Store]) -> None:
        self._members = tuple(members)
        first = members[0]
        _require_different_teachers(self._members)
        for other in members[1:]:
            _require_in_step(first, other)
        names = [folder_name(_teacher(member)["name"]) for member in members]
        views = min(member.views for member in members)
        self.location = first.location
        self.manifest = _manifest(self._members, names, views)
        self.fingerprint = joint_fingerprint(members)
        self.layout = _layout(self._members, names, views)
        self.taps = {tap.name: tap for tap in self.layout.public}
        self.extents = self.layout.extents
        self.uid_bytes, self._splits = first.uid_bytes, first._splits
        self.labels, self.groups = first.labels, first.groups
        self.view_columns = first.view_columns
        self.view_parameters = first.view_parameters[:views]
        self._outcome = _outcome([member._outcome[:views] for member in members])
        self._home: dict[str, tuple[Store, str]] = {}
        for name, member in zip(names, members, strict=True):
            self._home |= {f"{name}.{tap.name}": (member, tap.name) for tap in member.layout.taps}
        self.projections = {
            name: home.projections[tap]
            for name, (home, tap) in self._home.items()
            if tap in home.projections
        }
        self._mapped = {name: home._mapped[tap] for name, (home, tap) in self._home.items()}

    @property
    def members(self) -> tuple[Store, ...]:
        """The stores that it is made of, in their order."""
        return self._members

    @property
    def where(self) -> str:
        """The locations of all members."""
        return " + ".join(str(member.location) for member in self._members)

    def array(self, tap: str) -> zarr.Array[Any]:
        """The tap's Zarr array in the store that it lies in; see `Store.array`."""
        member, name = self._home[self._tap(tap).name]
        return member.array(name)

    def _gather(
        self,
        name: str,
        samples: np.ndarray,
        views: np.ndarray | int,
        verify: bool,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self._require_stored(self._picks(samples, views))  # no member knows what the others lack
        return super()._gather(name, samples, views, verify, out)


def joint_fingerprint(members: Sequence[Store]) -> Fingerprint:
    """That of stores that are read in step, in this order."""
    return Fingerprint({"joint": [member.fingerprint.digest for member in members]})


def default_taps(store: Store) -> dict[str, str]:
    """Teacher → the tap that is read of it unless told otherwise, by its name in this store."""
    teacher = store.manifest["teacher"]
    if len(store.members) == 1:
        return {teacher["name"]: teacher["default_tap"]}
    taps: dict[str, str] = teacher["default_taps"]
    return taps


def classes_of_logits(store: Store) -> dict[str, list[str]]:
    """Tap of logits → the classes they are of, of teachers that say which."""
    single = {tap: (store, tap) for tap in store.taps}
    home = store._home if isinstance(store, JointStore) else single
    return {
        name: _teacher(member)["logits_classes"]
        for name, (member, tap) in home.items()
        if tap == "logits" and "logits_classes" in _teacher(member)
    }


def _teacher(store: Store) -> dict[str, Any]:
    teacher: dict[str, Any] = store.manifest["teacher"]
    return teacher


def _manifest(members: Sequence[Store], names: Sequence[str], views: int) -> dict[str, Any]:
    """The first member's, with all teachers instead of one."""
    own = members[0].manifest
    teachers = [_teacher(member) for member in members]
    return {
        **own,
        "teacher": {
            "name": JOINED_BY.join(teacher["name"] for teacher in teachers),
            "weights": {teacher["name"]: teacher["weights"] for teacher in teachers},
            "default_taps": {
                teacher["name"]: f"{name}.{teacher['default_tap']}"
                for name, teacher in zip(names, teachers, strict=True)
            },
            "members": teachers,
        },
        "views": {**own["views"], "count": views},
    }


def _layout(members: Sequence[Store], names: Sequence[str], views: int) -> StoreLayout:
    """Shards as large as the largest, so that whoever goes by shards reads large pieces of all."""
    taps: list[TapSpec] = []
    for name, member in zip(names, members, strict=True):
        taps += [replace(tap, name=f"{name}.{tap.name}") for tap in member.layout.taps]
    return StoreLayout(
        samples=members[0].samples,
        extents=tuple(min(member.extents[view] for member in members) for view in range(views)),
        taps=tuple(taps),
        shard_samples=max(member.layout.shard_samples for member in members),
        findings=members[0].layout.findings,
    )


def _outcome(outcomes: Sequence[np.ndarray]) -> np.ndarray:
    """What became of each pair in all of them: stored, or what the first says that lacks it."""
    joint = outcomes[0].copy()
    for outcome in outcomes[1:]:
        lacking = (joint == STORED) & (outcome != STORED)
        joint[lacking] = outcome[lacking]
    return joint


def _require_different_teachers(members: Sequence[Store]) -> None:
    if len(members) < 2:
        raise UsageError("several stores are to be read in step.", given=len(members))
    counts = Counter(_teacher(member)["name"] for member in members)
    name, count = counts.most_common(1)[0]
    if count > 1:
        raise UsageError(
            f"{count} of these stores are of the teacher {name}; one of each teacher is wanted.",
            stores=", ".join(str(member.location) for member in members),
        )


def _require_in_step(first: Store, other: Store) -> None:
    """Refuse two stores whose sample numbers and views do not stand for the same pixels."""
    if differing := _differing_in_dataset(first, other):
        facts = (_of_dataset(first), _of_dataset(other))
        raise _out_of_step(" and ".join(differing), first, other, *facts)
    views = min(first.views, other.views)
    if first.view_columns != other.view_columns or not np.array_equal(
        first.view_parameters[:views], other.view_parameters[:views]
    ):
        specs = (_of_views(first.manifest["views"]), _of_views(other.manifest["views"]))
        raise _out_of_step("views", first, other, *specs)


def _differing_in_dataset(first: Store, other: Store) -> list[str]:
    """In what the datasets of two stores differ; labels, splits and groups can be compared only
    where the images are the same.
    """
    own, theirs = first.manifest["dataset"], other.manifest["dataset"]
    differing = ["classes"] if own["classes"] != theirs["classes"] else []
    if not np.array_equal(first.uid_bytes, other.uid_bytes):
        return [*differing, "images"]
    columns = {"labels": "labels", "splits": "_splits", "groups": "groups"}
    differing += [
        what
        for what, column in columns.items()
        if not np.array_equal(getattr(first, column), getattr(other, column))
    ]
    return differing or (["dataset digests"] if own["digest"] != theirs["digest"] else [])


def _out_of_step(what: str, first: Store, other: Store, own: str, theirs: str) -> UsageError:
    """Both stores, and what each says of what differs."""
    return UsageError(
        f"these stores cannot be read in step: their {what} differ.",
        one=f"{first.location}  {own}",
        other=f"{other.location}  {theirs}",
        next="rdcache extract one of them again, with the options of the other",
    )


def _of_dataset(store: Store) -> str:
    dataset = store.manifest["dataset"]
    classes = ", ".join(dataset["classes"])
    counts = [f"{split} {len(store.samples_of(split))}" for split in ("train", "val", "test")]
    digest = f"digest {dataset['digest'][:8]}…"
    return f"{dataset['name']}, {digest}, {', '.join(counts)}, classes {classes}"


def _of_views(views: Mapping[str, Any]) -> str:
    facts = ("kind", "count", "fit", "symmetry")
    return ", ".join(f"{name} {views[name]}" for name in facts if name in views)
