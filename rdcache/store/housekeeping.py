"""Removing stores, and what crashed or forgotten work has left under a root."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rdcache.errors import StoreNotFoundError, UsageError
from rdcache.store.catalogue import list_stores
from rdcache.store.claims import Worker, claims_beside
from rdcache.store.manifest import read_manifest
from rdcache.store.objects import TEMPORARY, LocalObjects, write_error

REMOVED = ".removed"  # suffix of a folder that is being deleted, and no store any more
CLAIMS = ".claims"
SECONDS_A_DAY = 86_400
# What a live process writes is seconds old; a file of this age has no writer any more.
OLD_SECONDS = 3_600


@dataclass(frozen=True)
class Garbage:
    """Something under a root that nobody needs.

    Attributes:
        why: in a few words.
        nbytes: what deleting it frees.
    """

    path: Path
    why: str
    nbytes: int


def disk_usage(path: Path) -> int:
    """Bytes of all files below a folder, or of one file; links are not followed."""
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(
        (Path(folder) / name).lstat().st_size
        for folder, _, names in os.walk(path)
        for name in names
    )


def remove_store(location: Path) -> int:
    """Delete a store and return how many bytes that freed.

    It is renamed first, so that nobody ever opens half of it, and what a crash leaves is garbage.

    Raises:
        StoreNotFoundError: there is no store.
        UsageError: it is a link, or somebody is at work on it.
        StoreWriteError: it may not be deleted.
    """
    location = Path(location)
    if location.is_symlink():
        raise UsageError("this is a link; remove the store that it leads to.", link=location)
    if not (location / "zarr.json").is_file():
        raise StoreNotFoundError("there is no rdcache store here.", looked_at=location)
    read_manifest(location)
    if in_use(location):
        raise UsageError("an extraction is at work on this store.", store=location)
    nbytes = disk_usage(location)
    aside = location.with_name(f".{location.name}.{secrets.token_hex(4)}{REMOVED}")
    try:
        location.rename(aside)
        shutil.rmtree(aside)
        shutil.rmtree(claims_beside(location).folder, ignore_errors=True)
    except OSError as error:
        raise write_error(location, error) from error
    return nbytes


def in_use(location: Path) -> bool:
    """Whether a live process is extracting this store."""
    return _at_work(claims_beside(location))


def _at_work(claims: LocalObjects) -> bool:
    """Whether any worker has shown life lately; one look tells no more than a file's age."""
    signs = [claims.folder / "workers" / token for token in Worker(claims).others()]
    ages = [time.time() - sign.stat().st_mtime for sign in signs if sign.exists()]
    return any(age < OLD_SECONDS for age in ages)


def find_garbage(
    root: Path, unused_days: float | None = None, incomplete: bool = False
) -> list[Garbage]:
    """List what crashed runs have left under a root, and what is asked for besides.

    Args:
        unused_days: also complete stores that nobody has opened for so many days, as far as the
            file system notes when a file was read.
        incomplete: also stores whose extraction has not finished and that nobody is at work on.
    """
    found = [*_leftovers(root)]
    for summary in list_stores(root):
        if in_use(summary.location):
            continue
        idle = (time.time() - _last_use(summary.location)) / SECONDS_A_DAY
        if not summary.complete and incomplete:
            why = "extraction has not finished"
        elif summary.complete and unused_days is not None and idle >= unused_days:
            why = f"not opened for {idle:.0f} days"
        else:
            continue
        found.append(Garbage(summary.location, why, disk_usage(summary.location)))
    return [garbage for garbage in found if not _by_link(garbage.path, root)]


def _by_link(path: Path, root: Path) -> bool:
    """Whether a link below the root leads to a path, which is then not the root's to clean."""
    between = [path, *path.parents]
    return any(folder.is_symlink() for folder in between[: between.index(root)])


def delete_garbage(garbage: Garbage) -> None:
    """Delete one finding of `find_garbage`.

    Raises:
        UsageError: somebody has begun to work on it since.
        StoreWriteError: it may not be deleted.
    """
    path = garbage.path
    if (path / "zarr.json").is_file() and not path.name.endswith(REMOVED):
        remove_store(path)
        return
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def _leftovers(root: Path) -> Iterator[Garbage]:
    for path in sorted(root.glob(f"*/*/.*{REMOVED}")):
        yield Garbage(path, "half-deleted store", disk_usage(path))
    for path in sorted(root.glob(f"*/*/*{CLAIMS}")):
        if not _at_work(LocalObjects(path)):
            yield Garbage(path, "claims of processes that have ended", disk_usage(path))
    for path in sorted(root.glob(f"*/*/*/**/.*{TEMPORARY}")):
        if time.time() - path.lstat().st_mtime > OLD_SECONDS:
            yield Garbage(path, "file of a writer that died", disk_usage(path))


def _last_use(location: Path) -> float:
    """When a store was last opened or changed, in seconds since 1970.

    Opening reads the uids; listing stores reads the manifests alone.
    """
    status = (location / "uid" / "c" / "0" / "0").stat()
    return max(status.st_atime, status.st_mtime, (location / "zarr.json").stat().st_mtime)
