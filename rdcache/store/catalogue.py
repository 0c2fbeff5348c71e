"""Which stores lie under a root, and which of them is meant."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from rdcache.errors import (
    StoreFormatError,
    StoreNotFoundError,
    UnknownNameError,
    UnsafeFileError,
)
from rdcache.store.locations import Location, as_location
from rdcache.store.manifest import fingerprint_of, layout_of, read_manifest
from rdcache.store.objects import objects_at


@dataclass(frozen=True)
class StoreSummary:
    """One line of the catalogue.

    Attributes:
        taps: names.
        created: when its extraction began, ISO 8601, UTC.
        who: finished it, if they gave a name.
    """

    location: Location
    dataset: str
    teacher: str
    fingerprint: str
    complete: bool
    samples: int
    views: int
    taps: tuple[str, ...]
    nbytes: int
    created: str
    who: str | None


def default_root(explicit: Location | None = None) -> Location:
    """Where stores are kept: as given, else RDCACHE_ROOT, else the user's cache folder.

    Raises:
        UsageError: RDCACHE_ROOT is an address that no store can lie under.
    """
    if explicit is not None:
        return as_location(explicit)
    if os.environ.get("RDCACHE_ROOT"):
        return as_location(os.environ["RDCACHE_ROOT"])
    return Path(platformdirs.user_cache_dir("rdcache")) / "stores"


def store_location(root: Location | None, dataset: str, teacher: str, digest: str) -> Location:
    """Where a store lies, or will lie."""
    return default_root(root) / folder_name(dataset) / folder_name(teacher) / digest[:12]


def folder_name(name: str) -> str:
    """A name of a teacher or dataset as one portable folder name.

    >>> folder_name("timm:vit_base_patch16_224.dino")
    'timm-vit_base_patch16_224.dino'
    """
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def list_stores(root: Location) -> list[StoreSummary]:
    """Every store under a root, newest last. What is no store of ours is passed over.

    Raises:
        BucketError: the bucket does not answer.
    """
    found = (_summary(location) for location in store_folders(root))
    summaries = [summary for summary in found if summary is not None]
    return sorted(summaries, key=lambda summary: summary.created)


def store_folders(root: Location) -> Iterator[Location]:
    """The folders that lie where a store would, `<dataset>/<teacher>/<digest>`."""
    objects = objects_at(root)
    for dataset in objects.folders(""):
        for teacher in objects.folders(dataset):
            for digest in objects.folders(f"{dataset}/{teacher}"):
                if not digest.startswith("."):  # one that is being deleted
                    yield root / dataset / teacher / digest


def _summary(location: Location) -> StoreSummary | None:
    """What the manifest of one store says; None where there is none that we can read."""
    try:
        manifest = read_manifest(location)
        layout = layout_of(manifest, location)
        digest = fingerprint_of(manifest, location).digest
    except (StoreNotFoundError, StoreFormatError, UnsafeFileError):
        return None
    return StoreSummary(
        location=location,
        dataset=_name(manifest, "dataset", location.parent.parent.name),
        teacher=_name(manifest, "teacher", location.parent.name),
        fingerprint=digest,
        complete=manifest.get("complete") is True,
        samples=layout.samples,
        views=layout.views,
        taps=tuple(tap.name for tap in layout.public),
        nbytes=layout.nbytes(),
        created=str(manifest.get("created", "")),
        who=_who(manifest),
    )


def _name(manifest: Mapping[str, Any], fact: str, otherwise: str) -> str:
    """The manifest's own name for its dataset or teacher, else that of the folder."""
    value = manifest.get(fact)
    name = value.get("name") if isinstance(value, Mapping) else value
    return name if isinstance(name, str) else otherwise


def _who(manifest: Mapping[str, Any]) -> str | None:
    provenance = manifest.get("provenance")
    who = provenance.get("who") if isinstance(provenance, Mapping) else None
    return who if isinstance(who, str) else None


def newest_store(
    root: Location | None = None, dataset: str | None = None, teacher: str | None = None
) -> Location:
    """The newest complete store under a root, of this dataset and this teacher if they are named.

    Raises:
        StoreNotFoundError: there is none.
        UnknownNameError: there is none, but one whose name is much like it.
    """
    folder = default_root(root)
    stores = list_stores(folder)
    fitting = [
        summary.location
        for summary in stores
        if summary.complete
        and dataset in (None, summary.dataset)
        and teacher in (None, summary.teacher)
    ]
    if fitting:
        return fitting[-1]
    for kind, name, known in (
        ("dataset", dataset, {summary.dataset for summary in stores}),
        ("teacher", teacher, {summary.teacher for summary in stores}),
    ):
        if name is not None and difflib.get_close_matches(name, known - {name}, 1, 0.7):
            raise UnknownNameError.of(f"store of the {kind}", name, known)
    flags = f"--teacher {teacher or 'NAME'} --dataset {dataset or 'NAME'}"
    raise StoreNotFoundError(
        "there is no complete store to distil from.",
        looked_under=folder,
        wanted=f"dataset {dataset or 'any'}, teacher {teacher or 'any'}",
        next=f"rdcache extract {flags}, or pass --root",
    )
