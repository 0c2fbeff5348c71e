"""Removing stores, and what crashed or forgotten work has left under a root."""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rdcache.errors import UsageError
from rdcache.store.catalogue import list_stores, store_folders
from rdcache.store.claims import Worker, claims_beside
from rdcache.store.locations import Location, RemotePath
from rdcache.store.manifest import read_manifest
from rdcache.store.objects import TEMPORARY, LocalObjects, Objects, objects_at, write_error

# Suffix of a folder, or object in a prefix, that is being deleted and is no store any more.
REMOVED = ".removed"
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

    path: Location
    why: str
    nbytes: int


def disk_usage(path: Location) -> int:
    """Bytes of all files below a folder or prefix, or of one file; links are not followed."""
    if isinstance(path, RemotePath):
        return sum(objects_at(path).sizes("").values())
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_size
    return sum(
        (Path(folder) / name).lstat().st_size
        for folder, _, names in os.walk(path)
        for name in names
    )


def remove_store(location: Location) -> int:
    """Delete a store and return how many bytes that freed.

    It is renamed first; in a bucket it is marked and loses its manifest first. So nobody ever opens
    half of it, and what a crash leaves is known to be garbage.

    Raises:
        StoreNotFoundError: there is no store.
        UsageError: it is a link, or somebody is at work on it.
        StoreWriteError: it may not be deleted.
    """
    if isinstance(location, Path) and location.is_symlink():
        raise UsageError("this is a link; remove the store that it leads to.", link=location)
    read_manifest(location)
    if in_use(location):
        raise UsageError("an extraction is at work on this store.", store=location)
    nbytes = disk_usage(location)
    if isinstance(location, RemotePath):
        _remove_prefix(location)
    else:
        _remove_folder(location)
    claims_beside(location).remove_all()
    return nbytes


def _remove_prefix(location: RemotePath) -> None:
    objects = objects_at(location)
    objects.put(REMOVED, b"")
    objects.delete(["zarr.json"])
    objects.delete(sorted(objects.sizes("").keys() - {REMOVED}))
    objects.delete([REMOVED])


def _remove_folder(location: Path) -> None:
    aside = location.with_name(f".{location.name}.{secrets.token_hex(4)}{REMOVED}")
    try:
        location.rename(aside)
        shutil.rmtree(aside)
    except OSError as error:
        raise write_error(location, error) from error


def in_use(location: Location) -> bool:
    """Whether a live process is extracting this store."""
    return _at_work(claims_beside(location))


def _at_work(claims: Objects) -> bool:
    """Whether any worker has shown life lately; one look tells no more than an object's age."""
    signs = [claims.modified(f"workers/{token}") for token in Worker(claims).others()]
    return any(sign is not None and time.time() - sign < OLD_SECONDS for sign in signs)


def find_garbage(
    root: Location, unused_days: float | None = None, incomplete: bool = False
) -> list[Garbage]:
    """List what crashed runs have left under a root, and what is asked for besides.

    Args:
        unused_days: also complete stores that nobody has opened for so many days, as far as the
            file system notes when a file was read.
        incomplete: also stores whose extraction has not finished and that nobody is at work on.

    Raises:
        UsageError: `unused_days` for a bucket, which does not note when an object was read.
        BucketError: the bucket does not answer.
    """
    if isinstance(root, RemotePath) and unused_days is not None:
        raise UsageError(
            "a bucket does not note when a store was last opened.",
            root=root,
            next="leave out --unused-for, and choose by `rdcache list stores` which to remove",
        )
    found = [*(_remote_leftovers(root) if isinstance(root, RemotePath) else _leftovers(root))]
    for summary in list_stores(root):
        if in_use(summary.location):
            continue
        idle = 0.0 if unused_days is None else _days_unused(summary.location)
        if not summary.complete and incomplete:
            why = "extraction has not finished"
        elif summary.complete and unused_days is not None and idle >= unused_days:
            why = f"not opened for {idle:.0f} days"
        else:
            continue
        found.append(Garbage(summary.location, why, disk_usage(summary.location)))
    return [garbage for garbage in found if not _by_link(garbage.path, root)]


def _by_link(path: Location, root: Location) -> bool:
    """Whether a link below the root leads to a path, which is then not the root's to clean."""
    if isinstance(path, RemotePath) or isinstance(root, RemotePath):
        return False
    between = [path, *path.parents]
    return any(folder.is_symlink() for folder in between[: between.index(root)])


def delete_garbage(garbage: Garbage) -> None:
    """Delete one finding of `find_garbage`.

    Raises:
        UsageError: somebody has begun to work on it since.
        StoreWriteError: it may not be deleted.
    """
    path = garbage.path
    objects = objects_at(path)
    if objects.exists("zarr.json") and not path.name.endswith(REMOVED):
        remove_store(path)
        return
    if isinstance(path, RemotePath):
        if path.name.endswith(CLAIMS):
            objects.remove_all()
        else:
            _remove_prefix(path)
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


def _remote_leftovers(root: RemotePath) -> Iterator[Garbage]:
    for path in store_folders(root):
        objects = objects_at(path)
        if objects.exists(REMOVED):
            yield Garbage(path, "half-deleted store", disk_usage(path))
        elif path.name.endswith(CLAIMS) and not _at_work(objects):
            yield Garbage(path, "claims of processes that have ended", disk_usage(path))


def _days_unused(location: Location) -> float:
    """How long ago a store was last opened or changed.

    Opening reads the uids; listing stores reads the manifests alone.
    """
    assert isinstance(location, Path)
    status = (location / "uid" / "c" / "0" / "0").stat()
    last = max(status.st_atime, status.st_mtime, (location / "zarr.json").stat().st_mtime)
    return (time.time() - last) / SECONDS_A_DAY
