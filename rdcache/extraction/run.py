"""Phase 1: the teacher runs once over every view, and its tensors go into the store by shards.

A shard (one view of a range of samples) is filled in memory and handed to the store whole, so that
an interrupted extraction resumes at the first shard that is missing. How shards are filled and
written at the same time is the part of `shards.py`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal, Protocol

import numpy as np
import torch

import rdcache
from rdcache.data import view_columns
from rdcache.errors import StoreNotFoundError, UsageError
from rdcache.extraction.basis import fit_projections
from rdcache.extraction.fidelity import measure_fidelity
from rdcache.extraction.forward import TeacherForward, forward_of
from rdcache.extraction.plan import ExtractionPlan
from rdcache.extraction.reuse import Donors, find_donors
from rdcache.extraction.shards import WritingBeside, filled_shards
from rdcache.extraction.widening import (
    POLL_SECONDS,
    Float16OverflowError,
    taps_beyond_float16,
    widen,
    widened,
)
from rdcache.models import Teacher
from rdcache.progress import Progress, ignore
from rdcache.store import (
    EXTRACTION,
    Location,
    RemotePath,
    ShardRef,
    Store,
    StoreContent,
    StoreWriter,
    TapSpec,
    Worker,
    claims_beside,
    create_store,
    finished_store,
    open_directly,
    open_store,
    read_manifest,
)
from rdcache.store.projection import Projection

Status = Literal["extracted", "resumed", "joined", "unchanged"]
COMMIT = "commit"


@dataclass(frozen=True)
class Extraction:
    """What an extraction did.

    Attributes:
        status: `extracted` anew, `resumed` after an interruption, `joined` beside another process,
            or `unchanged` because a store of the same fingerprint was complete already.
        promoted: taps kept in float32 because their values do not fit float16.
        not_finite: (sample, view) pairs left out because the teacher gave NaN or Inf.
        copied: samples of views that other stores of the same teacher already held.
        seconds: wall time of this call's own work.
    """

    store: Store
    status: Status
    promoted: tuple[str, ...]
    not_finite: tuple[tuple[int, int], ...]
    copied: int
    seconds: float


def run_extraction(plan: ExtractionPlan, on_progress: Progress = ignore) -> Extraction:
    """Write what the plan's store still lacks, alone or beside others who do the same.

    Raises:
        StoreWriteError: the root cannot be written, or the space does not suffice.
        TeacherOutputError: a whole first batch has no finite numbers.
        ClusterError: the scheduler does not answer, or its workers keep dying.
    """
    began = time.perf_counter()
    if (store := finished_store(plan.location)) is not None:
        return _describe(store, plan, "unchanged", began)
    forward = forward_of(plan)
    with Worker(claims_beside(plan.location), plan.config.who) as worker:
        status = await_turn(plan, worker, on_progress)
        copied = 0
        if status == "unchanged":
            store = open_directly(plan.location)
        else:
            with _crew(plan, forward, worker, on_progress) as crew:
                store = _fill(_open_writer(plan, forward, worker), crew, worker, plan)
                copied = crew.copied
        worker.remove_traces()
    return _describe(store, plan, status, began, copied)


def await_turn(plan: ExtractionPlan, worker: Worker, on_progress: Progress) -> Status:
    """Wait until the extraction is ours to do, or ours to join, or has been done by another."""
    while not worker.claim(EXTRACTION):
        if finished_store(plan.location) is not None:
            return "unchanged"
        if plan.config.join and _is_begun(plan.location):
            return "joined"
        who = worker.holder_name(EXTRACTION) or "another process"
        on_progress(0, 1, f"waiting for {who}, who extracts this store (--join to help)")
        time.sleep(POLL_SECONDS)
    if finished_store(plan.location) is not None:
        return "unchanged"
    return "resumed" if _is_begun(plan.location) else "extracted"


@dataclass(frozen=True)
class Means:
    """With what tensors were computed: of no account for the fingerprint, but for their last bits.

    Attributes:
        device: a GPU's name, or the kind of another device.
        layout: how maps lie in memory, `channels_last` or `contiguous_format`.
        compiled: whether by a compiled program.
    """

    device: str
    layout: str
    compiled: bool

    @classmethod
    def of(cls, teacher: Teacher) -> Means:
        """What a teacher has here."""
        device = teacher.device
        return cls(
            torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            str(teacher.memory_format).removeprefix("torch."),
            teacher.compiled,
        )


class Crew(Protocol):
    """Who writes the shards that a store lacks: this process, or the workers of a cluster."""

    @property
    def copied(self) -> int:
        """Samples of views that were copied from other stores."""

    @property
    def means(self) -> set[Means]:
        """What the others were computed with."""

    def write_missing(self, writer: StoreWriter) -> None:
        """Go once through the shards that are missing, and write those that nobody else is at.

        Raises:
            Float16OverflowError: a tap must be kept in float32.
        """


@contextmanager
def _crew(
    plan: ExtractionPlan, forward: TeacherForward, worker: Worker, on_progress: Progress
) -> Iterator[Crew]:
    if plan.config.scheduler is None:
        yield ThisProcess(plan, forward, worker, on_progress)
    else:
        from rdcache.extraction.cluster import connected  # builds on this module

        with connected(plan, worker, on_progress) as cluster:
            yield cluster


def _fill(writer: StoreWriter, crew: Crew, worker: Worker, plan: ExtractionPlan) -> Store:
    """Write shards until none is missing, then declare the store complete, or see another do so."""
    while True:
        writer = writer.renewed()
        if writer.missing():
            try:
                crew.write_missing(writer)
            except Float16OverflowError as overflow:
                writer = widen(writer, overflow.tap, worker, plan)
        elif (store := finished_store(plan.location)) is not None:
            return store
        elif worker.claim(COMMIT):
            writer.objects.clean(worker.alive)  # of workers that were killed beside this one
            writer.write_tap_documents()  # a crash while a tap was widened may have left old ones
            done = {"provenance": provenance(plan, crew.means), **measure_fidelity(plan, writer)}
            return writer.commit(done)
        else:
            time.sleep(POLL_SECONDS)


def _open_writer(plan: ExtractionPlan, forward: TeacherForward, worker: Worker) -> StoreWriter:
    """Create the store, or reopen one that lacks shards."""
    layout = plan.layout
    projections: dict[str, Projection] = {}
    if not _is_begun(plan.location):
        projections = fit_projections(forward, layout.taps, plan.training)
        wide = taps_beyond_float16(forward, layout.taps, projections)
        layout = replace(layout, taps=widened(layout.taps, wide))
        plan.require_space(layout.nbytes())
    content = StoreContent(
        layout,
        plan.fingerprint,
        plan.sample_table(),
        plan.view_parameters,
        view_columns(plan.dataset.dimensions),
        plan.facts(),
        projections,
    )
    writer = create_store(plan.location, content, worker)
    shard_bytes = sum(tap.nbytes for tap in writer.layout.taps)
    plan.require_space(sum(shard.stop - shard.start for shard in writer.missing()) * shard_bytes)
    return writer


def _is_begun(location: Location) -> bool:
    try:
        read_manifest(location)
    except StoreNotFoundError:
        return False
    return True


class ThisProcess:
    """The crew of one: the teacher runs here."""

    def __init__(
        self,
        plan: ExtractionPlan,
        forward: TeacherForward,
        worker: Worker,
        on_progress: Progress,
    ) -> None:
        self.plan = plan
        self.forward = forward
        self.worker = worker
        self.on_progress = on_progress
        self.means = {Means.of(plan.teacher)}
        self._donors = Donors([])
        self._taps: tuple[TapSpec, ...] = ()

    @property
    def copied(self) -> int:
        """Samples of views that were copied from other stores."""
        return self._donors.given

    def write_missing(self, writer: StoreWriter) -> None:
        """Go once through the shards that are missing, and write those that nobody else is at."""
        if writer.layout.taps != self._taps:
            self._taps = writer.layout.taps
            self._donors = find_donors(self.plan, self._taps)
        total = sum(writer.layout.extents)
        missing = writer.missing()
        done = total - sum(shard.stop - shard.start for shard in missing)
        self.on_progress(done, total, "images")
        wrote = False
        with WritingBeside() as writing:

            def on_rows(rows: int) -> None:
                nonlocal done
                done += rows
                writing.raise_early()
                self.on_progress(done, total, "images")

            claimed = self._claimed(missing, writer)
            with closing(
                filled_shards(claimed, writer, self.forward, self._donors, on_rows)
            ) as shards:
                for filled in shards:
                    if not writing.write(filled):
                        return
                    wrote = True
            if not writing.finish():
                return
        if not wrote:
            time.sleep(POLL_SECONDS)  # the others are at all of them

    def _claimed(self, missing: Sequence[ShardRef], writer: StoreWriter) -> Iterator[ShardRef]:
        """Those of the missing shards that are ours to write, each claimed as it is asked for."""
        for shard in missing:
            if self.worker.claim(claim_on(shard)) and writer.lacks(shard):
                yield shard


def claim_on(shard: ShardRef) -> str:
    """The name under which a shard is claimed."""
    return f"shard-{shard.view}-{shard.index}"


def provenance(plan: ExtractionPlan, means: set[Means]) -> dict[str, Any]:
    """With what, where and when the tensors were computed, as far as the crew that finished the
    store has computed them.
    """
    means = means or {Means.of(plan.teacher)}
    return {
        "rdcache": rdcache.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "timm", "numpy", "zarr", "pillow")},
        "device": ", ".join(sorted({each.device for each in means})),
        "layout": ", ".join(sorted({each.layout for each in means})),
        "precision": plan.config.precision,
        **({"why_precision": plan.why_precision} if plan.why_precision else {}),
        **({"compiled": True} if any(each.compiled for each in means) else {}),
        **({"who": plan.config.who} if plan.config.who else {}),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _describe(
    store: Store,
    plan: ExtractionPlan,
    status: Status,
    began: float,
    copied: int = 0,
) -> Extraction:
    asked = {tap.name: tap.dtype for tap in plan.layout.taps}
    left_out = [
        (int(sample), view)
        for view, extent in enumerate(store.extents)
        for sample in np.flatnonzero(~store.available(range(extent), view))
    ]
    if isinstance(store.location, RemotePath):
        with suppress(UsageError):  # the download cache is too small: a look at the store is left
            store = open_store(store.location)
    return Extraction(
        store=store,
        status=status,
        promoted=tuple(name for name, tap in store.taps.items() if tap.dtype != asked[name]),
        not_finite=tuple(left_out),
        copied=copied,
        seconds=time.perf_counter() - began,
    )
