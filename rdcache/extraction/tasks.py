"""What a worker of a cluster does: one shard a task, with a teacher that it loads once."""

from __future__ import annotations

import socket
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from threading import Lock

import torch

import rdcache
from rdcache.data import default_data_dir
from rdcache.errors import RdcacheError, StaleStoreError, StoreNotFoundError
from rdcache.extraction.checking import FILES
from rdcache.extraction.config import ExtractConfig
from rdcache.extraction.forward import TeacherForward, forward_of
from rdcache.extraction.plan import ExtractionPlan, plan_extraction
from rdcache.extraction.reuse import Donors, find_donors
from rdcache.extraction.run import Means
from rdcache.extraction.shards import filled_shards
from rdcache.store import (
    Fingerprint,
    Location,
    StoreWriter,
    TapSpec,
    Worker,
    claims_beside,
    default_root,
    read_manifest,
)

# Packages that decide the stored numbers and that the manifest names: the same on every machine.
DECISIVE = ("torch", "timm", "numpy", "pillow", "numcodecs")
_ONE_AT_A_TIME = Lock()  # a worker process has one teacher, however many threads Dask gives it


@dataclass(frozen=True)
class Job:
    """One extraction, as its tasks know it.

    Attributes:
        config: with paths that mean the same in every working folder.
        token: of the driver, on whose behalf the workers write.
        threads: of the teacher's arithmetic on a CPU, as the driver has them: sums of another
            number of threads may have other last bits.
        software: name and version, of rdcache and of what decides the numbers.
    """

    config: ExtractConfig
    location: Location
    fingerprint: Fingerprint
    token: str
    threads: int
    software: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, plan: ExtractionPlan, token: str) -> Job:
        """The driver's own plan, for others."""
        return cls(
            config=_for_elsewhere(plan.config),
            location=_absolute(plan.location),
            fingerprint=plan.fingerprint,
            token=token,
            threads=torch.get_num_threads(),
            software=software(),
        )


@dataclass(frozen=True)
class Written:
    """What comes back of a shard.

    Attributes:
        copied: how many of its samples another store had.
        means: what the others were computed with.
    """

    copied: int
    means: Means


def write_shard(job: Job, view: int, index: int) -> Written:
    """Write one shard of the store, unless it is there already.

    Raises:
        StoreNotFoundError: this machine does not see the store.
        StaleStoreError: teacher, images or software are others here than where the driver runs.
        Float16OverflowError: a tap must be kept in float32.
        RdcacheError: see `plan_extraction` and `StoreWriter.write`; it names this machine.
    """
    with _ONE_AT_A_TIME:
        torch.set_num_threads(job.threads)
        try:
            return _write_shard(job, view, index)
        except RdcacheError as error:
            error.facts["worker"] = socket.gethostname()
            raise


def _write_shard(job: Job, view: int, index: int) -> Written:
    writer = _writer(job)
    plan, forward = _prepared(job)
    shard = writer.layout.shard(view, index)
    donors = _donors(job, writer.layout.taps)
    before = donors.given
    if writer.lacks(shard):
        for filled in filled_shards([shard], writer, forward, donors):
            filled.write()
    return Written(donors.given - before, Means.of(plan.teacher))


def _writer(job: Job) -> StoreWriter:
    try:
        manifest = read_manifest(job.location)
    except StoreNotFoundError:
        raise StoreNotFoundError(
            "a worker does not see the store.",
            store=job.location,
            next="keep the root on a file system that all machines share, or in a bucket",
        ) from None
    # The driver lives while its tasks do, so that nobody takes their temporary files for strays.
    driver = Worker(claims_beside(job.location), token=job.token)
    return StoreWriter(job.location, manifest, driver)


@lru_cache(maxsize=1)
def _prepared(job: Job) -> tuple[ExtractionPlan, TeacherForward]:
    """Scan the images and load the teacher, and make sure that they are the driver's."""
    differing = [
        f"{name} {here} there, {driver} where the command runs"
        for (name, here), (_, driver) in zip(software(), job.software, strict=True)
        if here != driver
    ]
    if differing:
        raise StaleStoreError(
            "a worker has other software, which may give other numbers.",
            differs_in="; ".join(differing),
            next="install the same versions on every machine",
        )
    plan = plan_extraction(job.config)
    if plan.fingerprint != job.fingerprint:
        raise StaleStoreError(
            "a worker has other files before it than the machine where the command runs.",
            differs_in=", ".join(plan.fingerprint.differences(job.fingerprint)),
            data=default_data_dir(job.config.data_dir),
        )
    plan = replace(plan, location=job.location)
    return plan, forward_of(plan)


@lru_cache(maxsize=1)
def _donors(job: Job, taps: tuple[TapSpec, ...]) -> Donors:
    return find_donors(_prepared(job)[0], taps)


def software() -> tuple[tuple[str, str], ...]:
    """What decides the numbers, beside the fingerprint; a build (`2.6.0+cpu`) is of no account."""
    packages = [(name, version(name).partition("+")[0]) for name in DECISIVE]
    return (("rdcache", rdcache.__version__), *packages)


def _for_elsewhere(config: ExtractConfig) -> ExtractConfig:
    """The config with absolute paths, since a worker has a working folder of its own."""
    weights, salt, key = config.weights, config.uid_salt, config.require_signature
    return config.model_copy(
        update={
            "root": _absolute(default_root(config.root)),
            "data_dir": default_data_dir(config.data_dir).absolute(),
            "teacher": _with_absolute_path(config.teacher),
            "dataset": _with_absolute_path(config.dataset),
            "weights": str(Path(weights).absolute())
            if weights and Path(weights).exists()
            else weights,
            "require_signature": key and key.expanduser().absolute(),
            "uid_salt": f"@{Path(salt[1:]).expanduser().absolute()}"
            if salt and salt.startswith("@")
            else salt,
        }
    )


def _absolute(location: Location) -> Location:
    return location.absolute() if isinstance(location, Path) else location


def _with_absolute_path(name: str) -> str:
    """`folder:images` → `folder:/home/ada/images`; other names stay."""
    kind, _, path = name.partition(":")
    if kind in FILES:
        return f"{kind}:{Path(path).expanduser().absolute()}"
    return name
