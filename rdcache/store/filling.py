"""Filling a store with numbers that are there already, where nothing has to be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from rdcache.errors import CorruptShardError, StaleStoreError, StoreFormatError, StoreWriteError
from rdcache.progress import Progress, ignore
from rdcache.store import arrays
from rdcache.store.claims import EXTRACTION, Worker, claims_beside
from rdcache.store.creating import StoreContent, create_store, finished_store
from rdcache.store.locations import Location
from rdcache.store.reader import Store
from rdcache.store.spec import ShardRef
from rdcache.store.writer import StoreWriter


@dataclass(frozen=True)
class Finished:
    """The finished store that a copy is of.

    Attributes:
        receipts: uint8 (views, shards, taps, 32), as `read_receipts` gives them.
    """

    manifest: Mapping[str, Any]
    receipts: np.ndarray


def fill_store(
    location: Location,
    content: StoreContent,
    fill: Callable[[StoreWriter, ShardRef], None],
    on_progress: Progress = ignore,
    finished: Finished | None = None,
    threads: int = 1,
) -> tuple[Store, bool]:
    """Write what a store still lacks, and declare it complete.

    Args:
        fill: writes one shard.
        finished: what this is a copy of, if it is one: it becomes the very same.
        threads: how many shards are written at once.

    Returns:
        The store, and whether anything had to be written.

    Raises:
        StoreWriteError: the root cannot be written, or another process fills this store.
        StaleStoreError: another store, or part of one, lies here, or a damaged one.
    """
    if (store := _there(location)) is not None and store.fingerprint == content.fingerprint:
        return store, False
    with _alone(location) as worker:
        writer = create_store(location, content, worker)
        if writer.layout != content.layout:
            raise StaleStoreError(
                "an unfinished store of the same fingerprint, but laid out otherwise, lies here.",
                store=location,
                next="delete its folder, or finish it with the command that began it",
            )
        if finished is not None:
            _forget_others(writer, finished)
        missing, total = writer.missing(), sum(content.layout.extents)
        done = total - sum(shard.stop - shard.start for shard in missing)
        on_progress(done, total, "samples")
        with ThreadPoolExecutor(threads, thread_name_prefix="fill") as pool:
            tasks = {pool.submit(fill, writer, shard): shard for shard in missing}
            try:
                for task in as_completed(tasks):
                    task.result()
                    done += tasks[task].stop - tasks[task].start
                    on_progress(done, total, "samples")
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return writer.commit({}, None if finished is None else finished.manifest), True


def _there(location: Location) -> Store | None:
    """The finished store that lies here.

    Raises:
        StaleStoreError: it is damaged.
    """
    try:
        return finished_store(location)
    except (StoreFormatError, CorruptShardError) as error:
        raise StaleStoreError(
            "what lies at the destination is damaged.",
            store=location,
            why=error.summary,
            next=f"rdcache rm {location}, then the same command again",
        ) from error


def _forget_others(writer: StoreWriter, finished: Finished) -> None:
    """Have those shards written again that an extraction of the same fingerprint has left here:
    another machine may give other last bits.
    """
    digests = writer.manifest["digests"]
    if any(finished.manifest["digests"].get(name) != digests[name] for name in digests):
        raise StaleStoreError(
            "an unfinished store of the same fingerprint, but of other columns, lies here.",
            store=writer.location,
            next="delete its folder, or finish it with the command that began it",
        )
    shards = writer.layout.shards()
    found = writer.objects.read_all([arrays.receipt_object(shard) for shard in shards])
    writer.forget(
        shard
        for shard, receipt in zip(shards, found, strict=True)
        if receipt not in (None, finished.receipts[shard.view, shard.index].tobytes())
    )


@contextmanager
def _alone(location: Location) -> Iterator[Worker]:
    """Keep others from filling this store at the same time."""
    with Worker(claims_beside(location)) as worker:
        try:
            if not worker.claim(EXTRACTION):
                raise StoreWriteError(
                    "another process is filling this store.",
                    store=location,
                    by=worker.holder_name(EXTRACTION) or "not told",
                    next="run the same command again when it is done",
                )
            yield worker
        finally:
            worker.remove_traces()
