"""Which of several ways to do a piece of work is fastest here, asked once and then remembered.

A choice may decide numbers that others compare (a precision is part of a store's fingerprint), so
it must not flip from run to run with the noise of a machine: what was measured is kept in `probes`
of the user's cache folder, and the same question gets the same answer until that file is deleted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from rdcache.errors import FileWriteError
from rdcache.files import user_cache, write_text

ROUNDS = 3
MARGIN = 1.2


@dataclass(frozen=True)
class Choice:
    """What a probe says.

    Attributes:
        name: of the candidate to take.
        seconds: candidate → seconds of one call, median over the rounds.
        cached: whether this was measured by an earlier run.
    """

    name: str
    seconds: Mapping[str, float]
    cached: bool

    def __str__(self) -> str:
        times = ", ".join(f"{name} {taken * 1e3:.3g} ms" for name, taken in self.seconds.items())
        return f"{self.name} ({times}; measured {'earlier' if self.cached else 'now'})"


def fastest(
    key: Mapping[str, object],
    candidates: Mapping[str, Callable[[], object]],
    margin: float = MARGIN,
) -> Choice:
    """Choose the first candidate, unless another is at least `margin` times as fast.

    Each candidate is called once to warm up, then they take turns, so that a machine that slows
    down does so for all of them.

    Args:
        key: everything but this machine that the answer depends on, as JSON values: the model, the
            size of its input, the device. Processor, PyTorch and number of threads are added.
        candidates: name → one call of it; all do the same amount of work. What runs on a GPU need
            not wait for it.
    """
    question = {"machine": machine(), "candidates": list(candidates), **key}
    text = json.dumps(question, sort_keys=True)
    path = user_cache() / "probes" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    if (kept := _kept(path, question)) is not None:
        return _choice(kept, margin, cached=True)
    seconds = _measured(candidates)
    if (kept := _kept(path, question)) is not None:  # by another process, meanwhile
        return _choice(kept, margin, cached=True)
    with contextlib.suppress(FileWriteError):  # the next run asks again
        write_text(path, json.dumps({"question": question, "seconds": seconds}, indent=1))
    return _choice(seconds, margin, cached=False)


def machine() -> dict[str, object]:
    """What decides on a machine which way is fastest; of a GPU the caller has the name."""
    return {
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def cpu_name() -> str:
    """The processor's model, as its maker writes it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _measured(candidates: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(ROUNDS + 1):
        for name, call in candidates.items():
            began = time.perf_counter()
            call()
            if torch.cuda.is_initialized():
                torch.cuda.synchronize()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def _choice(seconds: Mapping[str, float], margin: float, cached: bool) -> Choice:
    first = next(iter(seconds))
    best = min(seconds, key=lambda name: seconds[name])
    return Choice(best if seconds[first] >= margin * seconds[best] else first, seconds, cached)


def _kept(path: Path, question: Mapping[str, object]) -> dict[str, float] | None:
    """What was measured earlier; None where nothing was, or the file is not what we wrote."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        seconds = {name: float(content["seconds"][name]) for name in question["candidates"]}  # type: ignore[attr-defined]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    sound = all(math.isfinite(taken) and taken > 0 for taken in seconds.values())
    return seconds if sound and content.get("question") == question else None
