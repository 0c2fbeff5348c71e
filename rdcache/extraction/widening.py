"""Taps whose values do not fit float16 are kept in float32, found out as early as can be."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from rdcache.errors import TeacherOutputError
from rdcache.extraction.forward import TeacherForward
from rdcache.extraction.plan import ExtractionPlan
from rdcache.extraction.reduction import as_laid_out
from rdcache.store import StoreWriter, TapSpec, Worker
from rdcache.store.projection import Projection

WIDENING = "widening"  # a piece of work that only one of several processes does
POLL_SECONDS = 0.5
PROBE = 8  # images; they go through the teacher once more with the first shard
FLOAT16_MAX = float(np.finfo(np.float16).max)


class Float16OverflowError(ArithmeticError):
    """Finite values of a tap became infinite in float16, so the tap must be kept in float32."""

    def __init__(self, tap: str) -> None:
        super().__init__(tap)
        self.tap = tap


def widen(writer: StoreWriter, tap: str, worker: Worker, plan: ExtractionPlan) -> StoreWriter:
    """Begin anew with a tap in float32, unless another has just done so."""
    while not worker.claim(WIDENING):
        time.sleep(POLL_SECONDS)
    try:
        writer = writer.renewed()
        layout = replace(writer.layout, taps=widened(writer.layout.taps, {tap}))
        if layout != writer.layout:
            plan.require_space(layout.nbytes() - writer.layout.nbytes())
            writer = writer.restart_with(layout.taps)
        return writer
    finally:
        worker.release(WIDENING)


def taps_beyond_float16(
    forward: TeacherForward, taps: Sequence[TapSpec], projections: Mapping[str, Projection]
) -> set[str]:
    """Look at the first few images: which taps come near the largest float16, 65504?

    Half of it is the limit, so that a later image with somewhat larger activations does not
    force the extraction to start over.
    """
    samples = min(PROBE, forward.batch_size, len(forward.dataset))
    outputs = next(forward.batches(0, range(samples)))
    for name, values in outputs.items():
        finite = torch.isfinite(values.flatten(1)).all(1)
        if not finite.any():
            raise TeacherOutputError(
                f"{forward.teacher.name} gives NaN or Inf for every one of the first images.",
                tap=name,
                images=samples,
                next="check the weight file"
                + (", or try --precision float32" if forward.precision != "float32" else ""),
            )
    outputs = as_laid_out(outputs, taps, projections)
    largest = {
        name: values.float().nan_to_num(0.0, 0.0, 0.0).abs().max().item()
        for name, values in outputs.items()
    }
    return {
        tap.name for tap in taps if tap.dtype == "float16" and largest[tap.name] > FLOAT16_MAX / 2
    }


def widened(taps: Sequence[TapSpec], names: set[str]) -> tuple[TapSpec, ...]:
    """The taps, some of them in float32."""
    return tuple(replace(tap, dtype="float32") if tap.name in names else tap for tap in taps)
