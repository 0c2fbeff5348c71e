"""The stores that can be compared: one a teacher, all of the same images, labels and splits."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rdcache.data import portable_name
from rdcache.errors import StoreFormatError, StoreNotFoundError, UnknownNameError
from rdcache.models import corpus_overlap, list_teachers
from rdcache.models.adapters import name_of_run
from rdcache.models.teacher import RANDOM
from rdcache.store import Store, StoreSummary, default_root, list_stores, open_store, read_manifest
from rdcache.tasks import require_one_class, task_of
from rdcache.transferability.config import RankConfig

NEEDED = frozenset({"train", "val"})


@dataclass(frozen=True)
class Candidate:
    """A store whose taps are to be judged.

    Attributes:
        taps: the names of those that were asked for.
    """

    teacher: str
    store: Store
    taps: tuple[str, ...]


def find_candidates(config: RankConfig) -> tuple[list[Candidate], list[str]]:
    """Open the newest complete store of each teacher, and say which stores are left out.

    Stores are compared with the newest one: those of another digest of the dataset have other
    images, labels or splits.

    Raises:
        StoreNotFoundError: there is no complete store of this dataset.
        UnknownNameError: a teacher or tap that none of them has, or a dataset misspelt.
        StoreFormatError: a store that does not say what it was made of.
        SignatureError: one that is not signed by the key that is required.
    """
    complete, notes = _complete_stores(config)
    datasets = {summary.location: _dataset(summary) for summary in complete}
    whole = [it for it in complete if set(datasets[it.location].get("splits", NEEDED)) >= NEEDED]
    notes += _left_out("copied without train or val", [it for it in complete if it not in whole])
    if not whole:
        raise StoreNotFoundError(
            "no store of this dataset has both its training and its validation images.",
            left_out=_named(complete),
            next="rdcache pull STORE --split train,val",
        )
    digests = {summary.location: datasets[summary.location]["digest"] for summary in whole}
    wanted = digests[whole[-1].location]
    fitting = [summary for summary in whole if digests[summary.location] == wanted]
    notes += _left_out(
        "of other images, labels or splits than the newest store",
        [summary for summary in whole if digests[summary.location] != wanted],
    )
    newest = {summary.teacher: summary for summary in fitting}  # the last of each
    notes += _left_out(
        "older than another store of their teacher",
        [summary for summary in fitting if summary is not newest[summary.teacher]],
    )
    known = {tap for summary in newest.values() for tap in summary.taps}
    for tap in config.taps:
        if tap not in known:
            raise UnknownNameError.of("tap in these stores", tap, known)
    candidates = []
    for teacher, summary in sorted(newest.items()):
        taps = tuple(tap for tap in summary.taps if not config.taps or tap in config.taps)
        if taps:
            store = open_store(summary.location, require_signature=config.require_signature)
            candidates.append(Candidate(teacher, store, taps))
        else:
            notes += _left_out("without a tap that was asked for", [summary])
    return candidates, notes


def classes_of(store: Store) -> tuple[str, ...]:
    """Names of the dataset's classes.

    Raises:
        StoreFormatError: the manifest does not say, or a label is of none of them.
        UsageError: samples have no single class each.
    """
    dataset = store.manifest.get("dataset")
    if isinstance(dataset, dict):
        require_one_class("`rdcache rank`", *task_of(dataset), store=store.location)
    classes: Any = dataset.get("classes") if isinstance(dataset, dict) else None
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise _undescribed(store.location)
    if ((store.labels < 0) | (store.labels >= len(classes))).any():
        raise StoreFormatError(
            "a label of this store is of no class.", store=store.location, classes=len(classes)
        )
    return tuple(classes)


def leak_notes(store: Store) -> list[str]:
    """What the leak check of the dataset found, as far as the manifest tells."""
    dataset = store.manifest.get("dataset")
    leaks = dataset.get("leaks") if isinstance(dataset, dict) else None
    if not isinstance(leaks, dict):
        return []
    notes = []
    leaked = leaks.get("leaked_test_uids")
    if isinstance(leaked, list) and leaked:
        notes.append(
            f"{len(leaked)} test images also occur in train or val; the ranking looks at no test "
            "image, but results on them will be too good"
        )
    for fact, what in (
        ("across_splits", "pairs of duplicates lie"),
        ("straddling_groups", "groups of images lie"),
    ):
        count = leaks.get(fact)
        if isinstance(count, int) and count > 0:
            notes.append(
                f"{count} {what} in more than one split; where that is train and val, features "
                "that recognise single images look too good here"
            )
    return notes


def overlap_notes(candidates: Sequence[Candidate], dataset: str) -> list[str]:
    """Which teachers have seen images of the dataset in their own training, as far as is known."""
    cards = {card.name: card for card in list_teachers()}
    seen = [
        candidate.teacher
        for candidate in candidates
        if candidate.teacher in cards
        and not _untrained(candidate.store)
        and corpus_overlap(cards[candidate.teacher], dataset)
    ]
    if not seen:
        return []
    return [
        f"trained on images of {dataset}, perhaps on those that are held out, so that their "
        f"features may look too good: {', '.join(seen)}"
    ]


def _untrained(store: Store) -> bool:
    teacher = store.manifest.get("teacher")
    weights = teacher.get("weights") if isinstance(teacher, dict) else None
    return isinstance(weights, dict) and weights.get("source") == RANDOM


def _complete_stores(config: RankConfig) -> tuple[list[StoreSummary], list[str]]:
    """The complete stores of the dataset and teachers, newest last, and a note of the others."""
    folder, name = default_root(config.root), portable_name(config.dataset)
    stores = list_stores(folder)
    of_dataset = [summary for summary in stores if summary.dataset == name]
    known = {summary.dataset for summary in stores}
    if not of_dataset and difflib.get_close_matches(name, known, 1, 0.7):
        raise UnknownNameError.of("store of the dataset", name, known)
    complete = [summary for summary in of_dataset if summary.complete]
    if not complete:
        raise StoreNotFoundError(
            "there is no complete store of this dataset to rank.",
            looked_under=folder,
            dataset=name,
            **({"incomplete": _named(of_dataset)} if of_dataset else {}),
            next=f"rdcache extract --teacher NAME --dataset {config.dataset}, for each teacher",
        )
    teachers = {summary.teacher for summary in complete}
    wanted = [name_of_run(name) for name in config.teachers]  # stores know adapted ones by name
    for teacher in wanted:
        if teacher not in teachers:
            raise UnknownNameError.of(f"complete store of {name} by a teacher", teacher, teachers)
    asked = [it for it in of_dataset if not wanted or it.teacher in wanted]
    notes = _left_out("incomplete", [summary for summary in asked if not summary.complete])
    return [summary for summary in asked if summary.complete], notes


def _dataset(summary: StoreSummary) -> dict[str, Any]:
    """What the manifest says of the dataset: its `digest`, and of a part, its `splits`."""
    dataset = read_manifest(summary.location).get("dataset")
    if isinstance(dataset, dict) and isinstance(dataset.get("digest"), str):
        splits = dataset.get("splits", [])
        if isinstance(splits, list) and all(isinstance(split, str) for split in splits):
            return dataset
    raise _undescribed(summary.location)


def _undescribed(location: object) -> StoreFormatError:
    return StoreFormatError(
        "the manifest of this store does not say what it was made of.",
        store=location,
        next="name the others with --teacher, or remove it",
    )


def _left_out(why: str, stores: Sequence[StoreSummary]) -> list[str]:
    return [f"left out, {why}: {_named(stores)}"] if stores else []


def _named(stores: Sequence[StoreSummary]) -> str:
    return ", ".join(f"{summary.teacher}/{summary.fingerprint[:12]}" for summary in stores)
