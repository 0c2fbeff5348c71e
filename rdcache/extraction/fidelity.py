"""What is lost by keeping a tap smaller than the teacher gives it, measured on a probe.

The manifest's entry `fidelity` has for each such tap how many `samples` were compared, `cosine` and
`cka` as `similarity` gives them, and `ratio`: bytes of the teacher's output in float16 for each
byte that is stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from rdcache.data import CLEAN_VIEW
from rdcache.extraction.basis import probe
from rdcache.extraction.forward import forward_of
from rdcache.extraction.plan import ExtractionPlan
from rdcache.losses import cka as linear_cka
from rdcache.losses.similarity import MIN_SAMPLES
from rdcache.store import Store, StoreWriter, open_store
from rdcache.store.arrays import tap_object
from rdcache.store.quantisation import with_scales

PROBE = 64
DIGITS = 6


def similarity(
    whole: torch.Tensor, kept: torch.Tensor, restored: torch.Tensor
) -> tuple[float, float | None]:
    """How near kept features are to the teacher's, in float64.

    Args:
        whole, restored: (n, *tap of the teacher).
        kept: (n, *tap as it is kept), of int8 in float32 again.

    Returns:
        Cosine of what the teacher gave and what can be got back, mean over the samples; and linear
        unbiased CKA of what the teacher gave and what is kept, None for fewer than four samples.
    """
    x, y = whole.double().flatten(1), restored.double().flatten(1)
    both_zero = (x == 0).all(1) & (y == 0).all(1)
    cosines = torch.where(both_zero, 1.0, torch.cosine_similarity(x, y, dim=1))
    if len(x) < MIN_SAMPLES:
        return float(cosines.mean()), None
    return float(cosines.mean()), float(linear_cka(x, kept.double().flatten(1)))


def measure_fidelity(plan: ExtractionPlan, writer: StoreWriter) -> dict[str, Any]:
    """Compare what was just written with the teacher's own output on a probe of training samples.

    Returns:
        The manifest's entry `fidelity`, of taps that are reduced or compressed; nothing if there
        are none.
    """
    packed = {tap.name for tap in writer.layout.taps if tap.codec != "none"}
    changed = [it for it in plan.kept if it.reduced or it.kept.name in packed]
    if not changed:
        return {}
    store = open_store(plan.location, allow_incomplete=True)
    chosen = probe(plan.training, PROBE)
    samples = chosen[store.available(chosen.tolist(), CLEAN_VIEW)].tolist()
    if not samples:
        return {}
    whole = whole_outputs(plan, [it.whole.name for it in changed], samples)
    entry = {}
    for it in changed:
        name = it.whole.name
        kept = store.read(samples, CLEAN_VIEW, [name])[name]
        restored = it.restore(kept, store.projections.get(name))
        cosine, cka = similarity(whole[name], kept, restored)
        ratio = 2 * math.prod(it.whole.shape) * _stored_samples(store) / _stored_bytes(writer, name)
        facts = {"cosine": cosine, "cka": cka, "ratio": ratio}
        entry[name] = {
            "samples": len(samples),
            **{key: value and round(value, DIGITS) for key, value in facts.items()},
        }
    return {"fidelity": entry}


def whole_outputs(
    plan: ExtractionPlan, taps: Sequence[str], samples: Sequence[int]
) -> dict[str, torch.Tensor]:
    """What the teacher gives for the clean views of samples, float32, nothing pooled.

    Never compiled: for a few images, and for each choice of taps anew, that takes longer than it
    saves.
    """
    forward = forward_of(replace(plan, teacher=plan.teacher.uncompiled()), taps)
    forward.pools = {}
    batches = list(forward.batches(CLEAN_VIEW, samples))
    return {tap: torch.cat([batch[tap] for batch in batches]) for tap in taps}


def _stored_samples(store: Store) -> int:
    """Samples of views that are stored."""
    return sum(
        int(store.available(range(extent), view).sum()) for view, extent in enumerate(store.extents)
    )


def _stored_bytes(writer: StoreWriter, name: str) -> int:
    """Bytes of all shard objects of a tap and of its scales."""
    own = [tap for tap in writer.layout.taps if tap.name == name]
    return sum(
        writer.objects.size(tap_object(tap, shard.view, shard.index)) or 0
        for tap in with_scales(own)
        for shard in writer.layout.shards()
    )
