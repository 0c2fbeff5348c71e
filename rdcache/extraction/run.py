"""Phase 1: the teacher runs once over every view, and its tensors go into the store by shards.

A shard (one view of a range of samples) is filled in memory and handed to the store whole, so that
an interrupted extraction resumes at the first shard that is missing.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch

import rdcache
from rdcache.data import VIEW_COLUMNS
from rdcache.errors import StoreNotFoundError, TeacherOutputError
from rdcache.extraction.forward import TeacherForward
from rdcache.extraction.plan import ExtractionPlan
from rdcache.extraction.reuse import Donors, find_donors
from rdcache.progress import Progress, ignore
from rdcache.store import (
    EXTRACTION,
    NOT_FINITE,
    STORED,
    Location,
    ShardRef,
    Store,
    StoreWriter,
    TapSpec,
    Worker,
    claims_beside,
    create_store,
    finished_store,
    open_store,
    read_manifest,
)

Status = Literal["extracted", "resumed", "joined", "unchanged"]
# Pieces of work that one of several processes claims, beside single shards.
WIDENING, COMMIT = "widening", "commit"
POLL_SECONDS = 0.5
FLOAT16_MAX = float(np.finfo(np.float16).max)


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


class Float16OverflowError(ArithmeticError):
    """Finite values of a tap became infinite in float16, so the tap must be kept in float32."""

    def __init__(self, tap: str) -> None:
        super().__init__(tap)
        self.tap = tap


def run_extraction(plan: ExtractionPlan, on_progress: Progress = ignore) -> Extraction:
    """Write what the plan's store still lacks, alone or beside others who do the same.

    Raises:
        StoreWriteError: the root cannot be written, or the space does not suffice.
        TeacherOutputError: a whole first batch has no finite numbers.
    """
    began = time.perf_counter()
    if (store := finished_store(plan.location)) is not None:
        return _describe(store, plan, "unchanged", began)
    forward = TeacherForward(
        plan.teacher,
        plan.dataset,
        plan.view_parameters,
        [tap.name for tap in plan.layout.taps],
        plan.config.batch_size,
        plan.config.precision,
    )
    with Worker(claims_beside(plan.location), plan.config.who) as worker:
        status = await_turn(plan, worker, on_progress)
        copied = 0
        if status == "unchanged":
            store = open_store(plan.location)
        else:
            writer = _open_writer(plan, forward, worker)
            store, copied = _fill(writer, forward, worker, plan, on_progress)
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


def _fill(
    writer: StoreWriter,
    forward: TeacherForward,
    worker: Worker,
    plan: ExtractionPlan,
    on_progress: Progress,
) -> tuple[Store, int]:
    """Write shards until none is missing, then declare the store complete, or see another do so.

    Returns:
        The store, and how many samples of views were copied from other stores.
    """
    donors = find_donors(plan, writer.layout.taps)
    while True:
        if (renewed := writer.renewed()) is not writer:
            writer, donors = renewed, find_donors(plan, renewed.layout.taps)
        if writer.missing():
            try:
                _write_missing(writer, forward, donors, worker, on_progress)
            except Float16OverflowError as overflow:
                writer = _widen(writer, overflow.tap, worker, plan)
                donors = find_donors(plan, writer.layout.taps)
        elif (store := finished_store(plan.location)) is not None:
            return store, donors.given
        elif worker.claim(COMMIT):
            return writer.commit({"provenance": provenance(plan)}), donors.given
        else:
            time.sleep(POLL_SECONDS)


def _widen(writer: StoreWriter, tap: str, worker: Worker, plan: ExtractionPlan) -> StoreWriter:
    """Begin anew with a tap in float32, unless another has just done so."""
    while not worker.claim(WIDENING):
        time.sleep(POLL_SECONDS)
    try:
        writer = writer.renewed()
        layout = replace(writer.layout, taps=_widened(writer.layout.taps, {tap}))
        if layout != writer.layout:
            plan.require_space(layout.nbytes() - writer.layout.nbytes())
            writer = writer.restart_with(layout.taps)
        return writer
    finally:
        worker.release(WIDENING)


def _open_writer(plan: ExtractionPlan, forward: TeacherForward, worker: Worker) -> StoreWriter:
    """Create the store, or reopen one that lacks shards."""
    layout = plan.layout
    if not _is_begun(plan.location):
        wide = _taps_beyond_float16(forward, layout.taps)
        layout = replace(layout, taps=_widened(layout.taps, wide))
        plan.require_space(layout.nbytes())
    writer = create_store(
        plan.location,
        layout,
        plan.fingerprint,
        plan.sample_table(),
        plan.view_parameters,
        VIEW_COLUMNS,
        plan.facts(),
        worker,
    )
    shard_bytes = sum(tap.nbytes for tap in writer.layout.taps)
    plan.require_space(sum(shard.stop - shard.start for shard in writer.missing()) * shard_bytes)
    return writer


def _is_begun(location: Location) -> bool:
    try:
        read_manifest(location)
    except StoreNotFoundError:
        return False
    return True


def _taps_beyond_float16(forward: TeacherForward, taps: Sequence[TapSpec]) -> set[str]:
    """Look at the first batch: which taps come near the largest float16, 65504?

    Half of it is the limit, so that a later image with somewhat larger activations does not
    force the extraction to start over.
    """
    samples = min(forward.batch_size, len(forward.dataset))
    outputs = next(forward.batches(0, range(samples)))
    for name, values in outputs.items():
        finite = torch.isfinite(values.flatten(1)).all(1)
        if not finite.any():
            raise TeacherOutputError(
                f"{forward.teacher.name} gives NaN or Inf for every image of the first batch.",
                tap=name,
                images=samples,
                next="check the weight file"
                + (", or try --precision float32" if forward.precision != "float32" else ""),
            )
    largest = {
        name: values.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
        for name, values in outputs.items()
    }
    return {
        tap.name for tap in taps if tap.dtype == "float16" and largest[tap.name] > FLOAT16_MAX / 2
    }


def _widened(taps: Sequence[TapSpec], names: set[str]) -> tuple[TapSpec, ...]:
    return tuple(replace(tap, dtype="float32") if tap.name in names else tap for tap in taps)


def _write_missing(
    writer: StoreWriter,
    forward: TeacherForward,
    donors: Donors,
    worker: Worker,
    on_progress: Progress,
) -> None:
    """Go once through the shards that are missing, and write those that nobody else is at."""
    total = sum(writer.layout.extents)
    missing = writer.missing()
    done = total - sum(shard.stop - shard.start for shard in missing)
    on_progress(done, total, "images")
    wrote = False
    for shard in missing:
        if not worker.claim(f"shard-{shard.view}-{shard.index}") or not writer.lacks(shard):
            continue

        def on_rows(rows: int, before: int = done) -> None:
            on_progress(before + rows, total, "images")

        tensors, outcome = _computed(shard, writer, forward, donors, on_rows)
        if writer.renewed() is not writer:
            return  # another worker has changed a tap's dtype meanwhile
        writer.write(shard, tensors, outcome)
        done += shard.stop - shard.start
        wrote = True
    if not wrote:
        time.sleep(POLL_SECONDS)  # the others are at all of them


def _computed(
    shard: ShardRef,
    writer: StoreWriter,
    forward: TeacherForward,
    donors: Donors,
    on_rows: Callable[[int], None],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tensors by tap, and the outcome of each sample of a shard: copied from other stores where
    they have them, else from the teacher.
    """
    count = shard.stop - shard.start
    tensors = {
        tap.name: np.empty((count, *tap.shape), tap.stored_dtype) for tap in writer.layout.taps
    }
    outcome = np.full(count, STORED, np.uint8)
    fresh = np.ones(count, bool)
    uids = forward.dataset.uids[shard.start : shard.stop]
    for donated in donors.of(uids, forward.view_parameters[shard.view, shard.start : shard.stop]):
        for name, values in donated.tensors.items():
            tensors[name][donated.positions] = values
        fresh[donated.positions] = False
    places = np.flatnonzero(fresh)
    done = 0
    for outputs in forward.batches(shard.view, (shard.start + places).tolist()):
        rows = places[done : done + len(next(iter(outputs.values())))]
        for tap in writer.layout.taps:
            tensors[tap.name][rows], finite = _as_stored(outputs[tap.name], tap)
            outcome[rows[~finite]] = NOT_FINITE
        done += len(rows)
        on_rows(count - len(places) + done)
    return tensors, outcome


def _as_stored(values: torch.Tensor, tap: TapSpec) -> tuple[np.ndarray, np.ndarray]:
    """Convert one batch of a tap to its stored dtype, and say which samples are finite."""
    if tuple(values.shape[1:]) != tap.shape:
        raise TeacherOutputError(
            "the teacher's output has another shape than its tap declares.",
            tap=tap.name,
            declared=tap.shape,
            got=tuple(values.shape[1:]),
        )
    finite = torch.isfinite(values.flatten(1)).all(1)
    stored = values.to(getattr(torch, tap.dtype))
    if tap.dtype == "float16" and torch.isinf(stored[finite]).any():
        raise Float16OverflowError(tap.name)
    if tap.dtype == "bfloat16":
        stored = stored.view(torch.uint16)
    return stored.numpy(), finite.numpy()


def provenance(plan: ExtractionPlan) -> dict[str, Any]:
    """With what, where and when the tensors were computed."""
    device = plan.teacher.device
    return {
        "rdcache": rdcache.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "timm", "numpy", "zarr", "pillow")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": plan.config.precision,
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
    return Extraction(
        store=store,
        status=status,
        promoted=tuple(name for name, tap in store.taps.items() if tap.dtype != asked[name]),
        not_finite=tuple(left_out),
        copied=copied,
        seconds=time.perf_counter() - began,
    )
