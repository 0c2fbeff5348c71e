"""Filling a store with numbers that are there already, where nothing has to be computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rdcache.errors import StaleStoreError, StoreWriteError
from rdcache.progress import Progress, ignore
from rdcache.store.claims import EXTRACTION, Worker, claims_beside
from rdcache.store.locations import Location
from rdcache.store.manifest import group_document
from rdcache.store.projection import Projection
from rdcache.store.reader import Store, open_directly
from rdcache.store.spec import Fingerprint, SampleTable, ShardRef, StoreLayout
from rdcache.store.writer import StoreWriter, create_store, finished_store


@dataclass(frozen=True)
class StoreContent:
    """A store that has not been written yet: all that `create_store` asks for."""

    layout: StoreLayout
    fingerprint: Fingerprint
    samples: SampleTable
    view_parameters: np.ndarray
    view_columns: Sequence[str]
    facts: Mapping[str, Any]
    projections: Mapping[str, Projection] = field(default_factory=dict)


def fill_store(
    location: Location,
    content: StoreContent,
    fill: Callable[[StoreWriter, ShardRef], None],
    on_progress: Progress = ignore,
    manifest: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> tuple[Store, bool]:
    """Write what a store still lacks, and declare it complete.

    Args:
        fill: writes one shard.
        manifest: of the finished store, where there is one already: it stays as it is, with its
            time, its root and whatever is signed.
        threads: how many shards are written at once.

    Returns:
        The store, and whether anything had to be written.

    Raises:
        StoreWriteError: the root cannot be written, or another process fills this store.
        StaleStoreError: another store, or part of one, lies here.
    """
    if (store := finished_store(location)) is not None and store.fingerprint == content.fingerprint:
        return store, False
    with _alone(location) as worker:
        writer = create_store(
            location,
            content.layout,
            content.fingerprint,
            content.samples,
            content.view_parameters,
            content.view_columns,
            content.facts,
            worker,
            content.projections,
        )
        if writer.layout != content.layout:
            raise StaleStoreError(
                "an unfinished store of the same fingerprint, but laid out otherwise, lies here.",
                store=location,
                next="delete its folder, or finish it with the command that began it",
            )
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
        store = writer.commit({})
        if manifest is not None:
            writer.objects.put("zarr.json", group_document(manifest))
            store = open_directly(location)
        return store, True


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
