"""Phase 1: the teacher runs once over every view, and its tensors go into the store by shards.

A shard (one view of a range of samples) is filled in memory and handed to the store whole, so that
an interrupted extraction resumes at the first shard that is missing.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

import rdcache
from rdcache.data import VIEW_COLUMNS
from rdcache.errors import StoreIncompleteError, StoreNotFoundError, TeacherOutputError
from rdcache.extraction.forward import TeacherForward
from rdcache.extraction.plan import ExtractionPlan
from rdcache.progress import Progress, ignore
from rdcache.store import (
    NOT_FINITE,
    STORED,
    Store,
    StoreWriter,
    TapSpec,
    create_store,
    open_store,
    read_manifest,
)

FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclass(frozen=True)
class Extraction:
    """What an extraction did.

    Attributes:
        status: `extracted` anew, `resumed` after an interruption, or `unchanged` because a store
            of the same fingerprint was complete already.
        promoted: taps kept in float32 because their values do not fit float16.
        not_finite: (sample, view) pairs left out because the teacher gave NaN or Inf.
        seconds: wall time of this call's own work.
    """

    store: Store
    status: Literal["extracted", "resumed", "unchanged"]
    promoted: tuple[str, ...]
    not_finite: tuple[tuple[int, int], ...]
    seconds: float


class Float16OverflowError(ArithmeticError):
    """Finite values of a tap became infinite in float16, so the tap must be kept in float32."""

    def __init__(self, tap: str) -> None:
        super().__init__(tap)
        self.tap = tap


def run_extraction(plan: ExtractionPlan, on_progress: Progress = ignore) -> Extraction:
    """Write what the plan's store still lacks.

    Raises:
        StoreWriteError: the root cannot be written, or the space does not suffice.
        TeacherOutputError: a whole first batch has no finite numbers.
    """
    began = time.perf_counter()
    if (store := _finished(plan)) is not None:
        return _describe(store, plan, "unchanged", began)
    forward = TeacherForward(
        plan.teacher,
        plan.dataset,
        plan.view_parameters,
        [tap.name for tap in plan.layout.taps],
        plan.config.batch_size,
        plan.config.precision,
    )
    resumed = _is_begun(plan.location)
    writer = _open_writer(plan, forward)
    while True:
        try:
            _write_missing(writer, forward, on_progress)
            break
        except Float16OverflowError as overflow:
            widened = replace(writer.layout, taps=_widened(writer.layout.taps, {overflow.tap}))
            plan.require_space(widened.nbytes() - writer.layout.nbytes())
            writer = writer.restart_with(widened.taps)
    store = writer.commit({"provenance": provenance(plan)})
    return _describe(store, plan, "resumed" if resumed else "extracted", began)


def _finished(plan: ExtractionPlan) -> Store | None:
    """The plan's store, if it is complete and every shard has the length that it must have."""
    try:
        store = open_store(plan.location)
    except (StoreNotFoundError, StoreIncompleteError):
        return None
    return None if StoreWriter(plan.location, store.manifest).missing() else store


def _open_writer(plan: ExtractionPlan, forward: TeacherForward) -> StoreWriter:
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
    )
    shard_bytes = sum(tap.nbytes for tap in writer.layout.taps)
    plan.require_space(sum(shard.stop - shard.start for shard in writer.missing()) * shard_bytes)
    return writer


def _is_begun(location: Path) -> bool:
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
    outputs = next(forward.batches(view=0, start=0, stop=samples))
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


def _write_missing(writer: StoreWriter, forward: TeacherForward, on_progress: Progress) -> None:
    missing = writer.missing()
    total = sum(writer.layout.extents)
    done = total - sum(shard.stop - shard.start for shard in missing)
    on_progress(done, total, "images")
    for shard in missing:
        buffers = {
            tap.name: np.empty((shard.stop - shard.start, *tap.shape), tap.stored_dtype)
            for tap in writer.layout.taps
        }
        outcome = np.full(shard.stop - shard.start, STORED, np.uint8)
        row = 0
        for outputs in forward.batches(shard.view, shard.start, shard.stop):
            rows = slice(row, row + len(next(iter(outputs.values()))))
            for tap in writer.layout.taps:
                _keep(outputs[tap.name], tap, buffers[tap.name][rows], outcome[rows])
            on_progress(done := done + rows.stop - rows.start, total, "images")
            row = rows.stop
        writer.write(shard, buffers, outcome)


def _keep(values: torch.Tensor, tap: TapSpec, rows: np.ndarray, outcome: np.ndarray) -> None:
    """Convert one batch of a tap to its stored dtype; mark the samples with NaN or Inf."""
    if tuple(values.shape[1:]) != tap.shape:
        raise TeacherOutputError(
            "the teacher's output has another shape than its tap declares.",
            tap=tap.name,
            declared=tap.shape,
            got=tuple(values.shape[1:]),
        )
    finite = torch.isfinite(values.flatten(1)).all(1)
    outcome[~finite.numpy()] = NOT_FINITE
    stored = values.to(getattr(torch, tap.dtype))
    if tap.dtype == "float16" and torch.isinf(stored[finite]).any():
        raise Float16OverflowError(tap.name)
    if tap.dtype == "bfloat16":
        stored = stored.view(torch.uint16)
    rows[:] = stored.numpy()


def provenance(plan: ExtractionPlan) -> dict[str, Any]:
    """With what, where and when the tensors were computed."""
    device = plan.teacher.device
    return {
        "rdcache": rdcache.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "timm", "numpy", "zarr", "pillow")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "precision": plan.config.precision,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _describe(
    store: Store,
    plan: ExtractionPlan,
    status: Literal["extracted", "resumed", "unchanged"],
    began: float,
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
        seconds=time.perf_counter() - began,
    )
