"""Which stores lie under a root, and which of them is meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
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
from rdcache.store.manifest import fingerprint_of, layout_of, read_manifest


@dataclass(frozen=True)
class StoreSummary:
    """One line of the catalogue.

    Attributes:
        taps: names.
        created: when its extraction began, ISO 8601, UTC.
        who: finished it, if they gave a name.
    """

    location: Path
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


def default_root(explicit: Path | None = None) -> Path:
    """Where stores are kept: as given, else RDCACHE_ROOT, else the user's cache folder."""
    if explicit is not None:
        return Path(explicit).expanduser()
    if os.environ.get("RDCACHE_ROOT"):
        return Path(os.environ["RDCACHE_ROOT"]).expanduser()
    return Path(platformdirs.user_cache_dir("rdcache")) / "stores"


def list_stores(root: Path) -> list[StoreSummary]:
    """Every store under a root, newest last. What is no store of ours is passed over."""
    found = (_summary(document.parent) for document in sorted(root.glob("*/*/*/zarr.json")))
    summaries = [summary for summary in found if summary is not None]
    return sorted(
        summaries, key=lambda summary: (summary.created, summary.location.stat().st_mtime)
    )


def _summary(location: Path) -> StoreSummary | None:
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
        taps=tuple(tap.name for tap in layout.taps),
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
    root: Path | None = None, dataset: str | None = None, teacher: str | None = None
) -> Path:
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
