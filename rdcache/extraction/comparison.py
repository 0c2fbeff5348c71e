"""What each way of keeping a tap would save and cost, measured before anything is written.

The rule of the recommendation: a tap that needs less than `SMALL` bytes stays as it is; else the
smallest candidate whose cosine and CKA are at least `FAITHFUL`, if it is at least `WORTHWHILE`
times smaller.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch

from rdcache.errors import TeacherOutputError
from rdcache.extraction.basis import Moments, probe
from rdcache.extraction.fidelity import PROBE, similarity, whole_outputs
from rdcache.extraction.plan import ExtractionPlan
from rdcache.extraction.reduction import MAPS, MOST_CHANNELS, KeptTap, as_laid_out, pooled
from rdcache.progress import Progress, ignore
from rdcache.store import TapSpec
from rdcache.store.compression import compress, decompress
from rdcache.store.projection import Projection
from rdcache.store.quantisation import dequantise
from rdcache.store.shard import CHECKSUM_BYTES

SMALL = 10**9
FAITHFUL = 0.99
WORTHWHILE = 1.2
FLOAT16_MAX = float(np.finfo(np.float16).max)
REPEATS = 3
Made = TypeVar("Made")


@dataclass(frozen=True)
class Candidate:
    """One way of keeping a tap.

    Attributes:
        name: `none`, `zstd`, `int8+zstd`, …
        options: of `rdcache extract`, that choose it.
        nbytes: of the tap in the whole extraction.
        ratio: bytes of the teacher's output in float16, for each byte stored.
        encode_mb_s, decode_mb_s: 10⁶ bytes of the teacher's output in float16 a second, one thread.
        cosine, cka: see `rdcache.extraction.fidelity`.
    """

    name: str
    options: str
    nbytes: int
    ratio: float
    encode_mb_s: float
    decode_mb_s: float
    cosine: float
    cka: float | None


@dataclass(frozen=True)
class TapComparison:
    """All candidates of a tap, the plain one first, and the one that is recommended."""

    tap: TapSpec
    samples: int
    candidates: tuple[Candidate, ...]
    recommended: str
    why: str


def compare_codecs(plan: ExtractionPlan, on_progress: Progress = ignore) -> list[TapComparison]:
    """Run the teacher on a probe of training samples, and keep its taps in every way.

    Raises:
        TeacherOutputError: a tap is not finite for any sample of the probe.
    """
    samples = probe(plan.training, PROBE).tolist()
    comparisons = []
    for done, it in enumerate(plan.kept):
        on_progress(done, len(plan.kept), it.whole.name)
        # One tap at a time: a probe of all maps of a large teacher would not fit memory.
        values = whole_outputs(plan, [it.whole.name], samples)[it.whole.name]
        values = values[values.isfinite().flatten(1).all(1)]
        if not len(values):
            raise TeacherOutputError(
                "the teacher gives NaN or Inf for every image of the probe.", tap=it.whole.name
            )
        candidates = tuple(
            _measured(name, way, values, plan.forwards) for name, way in _ways(it, values)
        )
        comparisons.append(TapComparison(it.whole, len(values), candidates, *recommend(candidates)))
    return comparisons


def recommend(candidates: tuple[Candidate, ...]) -> tuple[str, str]:
    """The name of the best candidate, and why, by the rule above."""
    plain = candidates[0]
    if plain.nbytes < SMALL:
        return plain.name, f"the whole tap needs less than {SMALL / 1e9:.0f} GB"
    faithful = [
        it for it in candidates if it.cosine >= FAITHFUL and (it.cka is None or it.cka >= FAITHFUL)
    ]
    best = min([plain, *faithful], key=lambda it: it.nbytes)
    gain = plain.nbytes / best.nbytes
    if gain < WORTHWHILE:
        return plain.name, f"nothing that keeps cosine and CKA ≥ {FAITHFUL} saves a sixth of it"
    return best.name, (
        f"{gain:.1f} times smaller, the most of all that keep cosine and CKA ≥ {FAITHFUL}"
    )


def _ways(it: KeptTap, values: torch.Tensor) -> list[tuple[str, KeptTap]]:
    """Every candidate: its name, and how the tap would be kept."""
    whole = it.whole
    dtype = it.kept.dtype if it.kept.dtype != "int8" else "float16"
    if dtype == "float16" and float(values.abs().max()) > FLOAT16_MAX / 2:
        dtype = "float32"
    plain = KeptTap(whole, replace(whole, dtype=dtype))
    ways = [("none", plain)]
    for codec in ("zstd", "blosc"):
        ways.append((codec, replace(plain, kept=replace(plain.kept, codec=codec))))
    rounded = replace(whole, dtype="int8")
    ways.append(("int8", replace(plain, kept=rounded)))
    ways.append(("int8+zstd", replace(plain, kept=replace(rounded, codec="zstd"))))
    if whole.kind in MAPS and max(whole.shape[1:]) > 1:
        half = tuple(-(-side // 2) for side in whole.shape[1:])
        small = replace(plain.kept, shape=(whole.shape[0], *half))
        ways.append(("pool", KeptTap(whole, small, half)))
    channels = whole.shape[whole.channel_axis]
    # The basis is found from one half of the probe and measured on the other.
    vectors = len(values) // 2 * math.prod(whole.shape) // channels
    fewer = min(channels // 4, vectors - 1)
    if fewer > 0 and channels <= MOST_CHANNELS and whole.kind != "logits":
        shape = list(whole.shape)
        shape[whole.channel_axis] = fewer
        small = replace(plain.kept, shape=tuple(shape), projected_from=channels)
        ways.append(("project", replace(plain, kept=small)))
    return ways


def _measured(name: str, it: KeptTap, values: torch.Tensor, forwards: int) -> Candidate:
    """Keep a probe in one way and get it back."""
    projections: dict[str, Projection] = {}
    if it.kept.projected_from is not None:
        moments = Moments(it.kept)
        moments.add(values[::2])
        projections, values = {it.kept.name: moments.projection()}, values[1::2]
    packed, encode_seconds = _timed(lambda: _encoded(it, values, projections))
    back, decode_seconds = _timed(lambda: _decoded(it, packed))
    cosine, cka = similarity(values, back, it.restore(back, projections.get(it.kept.name)))
    plain_bytes = 2 * values.numel()
    nbytes = sum(row.size + CHECKSUM_BYTES for rows in packed.values() for row in rows)
    return Candidate(
        name=name,
        options=_options(it),
        nbytes=round(nbytes / len(values) * forwards),
        ratio=plain_bytes / nbytes,
        encode_mb_s=plain_bytes / 1e6 / encode_seconds,
        decode_mb_s=plain_bytes / 1e6 / decode_seconds,
        cosine=cosine,
        cka=cka,
    )


def _encoded(
    it: KeptTap, values: torch.Tensor, projections: dict[str, Projection]
) -> dict[str, list[np.ndarray]]:
    """Tap and scales as the payloads of a shard, each uint8 (n,)."""
    taps = [tap for tap in (it.kept, it.kept.scales) if tap is not None]
    outputs = as_laid_out({it.kept.name: pooled(values, it.pool)}, taps, projections)
    packed = {}
    for tap in taps:
        stored = outputs[tap.name].to(getattr(torch, tap.dtype)).contiguous()
        rows = stored.reshape(len(values), -1).view(torch.uint8).numpy()
        packed[tap.name] = [compress(tap, row) for row in rows]
    return packed


def _decoded(it: KeptTap, packed: dict[str, list[np.ndarray]]) -> torch.Tensor:
    """What `Store.read` would give, in float32."""
    tensors = {}
    for tap in (it.kept, it.kept.scales):
        if tap is None:
            continue
        batch = torch.empty((len(packed[tap.name]), *tap.shape), dtype=getattr(torch, tap.dtype))
        rows = batch.reshape(len(batch), -1).view(torch.uint8).numpy()
        for row, payload in zip(rows, packed[tap.name], strict=True):
            if tap.codec == "none":
                row[:] = payload
            else:
                decompress(tap, payload, row)
        tensors[tap.name] = batch
    values = tensors[it.kept.name]
    if it.kept.scales is not None:
        return dequantise(values, tensors[it.kept.scales.name], it.kept)
    return values.float()


def _timed(work: Callable[[], Made]) -> tuple[Made, float]:
    """The result, and the seconds of the fastest of a few runs."""
    fastest = math.inf
    for _ in range(REPEATS):
        began = time.perf_counter()
        result = work()
        fastest = min(fastest, time.perf_counter() - began)
    return result, max(fastest, 1e-9)


def _options(it: KeptTap) -> str:
    """How to ask for this."""
    tap, name = it.kept, it.kept.name
    chosen = {
        "--dtype": "" if tap.dtype == "float16" else tap.dtype,
        "--codec": "" if tap.codec == "none" else tap.codec,
        "--pool": "x".join(map(str, it.pool or ())),
        "--project": str(tap.shape[tap.channel_axis]) if tap.projected_from else "",
    }
    return " ".join(f"{flag} {name}={value}" for flag, value in chosen.items() if value)
