"""`--precision auto`: which arithmetic the teacher is to have on this machine, and why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from rdcache.models import Teacher
from rdcache.probing import fastest
from rdcache.progress import Progress, ignore

Precision = Literal["float32", "bfloat16"]
PROBE_BATCH = 8


def chosen_precision(
    teacher: Teacher, taps: Sequence[str], on_progress: Progress = ignore
) -> tuple[Precision, str]:
    """bfloat16 where it is faster, else float32; and a few words that say why.

    A GPU that computes in bfloat16 always gets it. On a CPU the teacher is timed once, and the
    answer is kept (see `probing`): it is part of the fingerprint, and must not flip.
    """
    if teacher.device.type == "cuda":
        with torch.cuda.device(teacher.device):
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        return (
            ("bfloat16", "this GPU has it") if native else ("float32", "this GPU has no bfloat16")
        )
    if teacher.device.type != "cpu":
        return "float32", f"bfloat16 is not tried on {teacher.device.type}"
    on_progress(0, 1, "timing float32 and bfloat16")
    choice = fastest(
        {
            "work": "a teacher's forward pass",
            "architecture": teacher.architecture,
            "weights": teacher.weights.sha256,
            "size": teacher.preprocessing.size,
            "taps": list(taps),
        },
        {"float32": _forward(teacher, taps, False), "bfloat16": _forward(teacher, taps, True)},
    )
    faster = choice.seconds["float32"] / choice.seconds["bfloat16"]
    when = "measured earlier" if choice.cached else "measured now"
    why = f"bfloat16 is {faster:.2g} times as fast as float32 here, {when}"
    return ("bfloat16" if choice.name == "bfloat16" else "float32"), why


def _forward(teacher: Teacher, taps: Sequence[str], autocast: bool) -> Callable[[], object]:
    size = teacher.preprocessing.size
    images = torch.zeros(PROBE_BATCH, 3, size, size)

    def call() -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return teacher.forward_taps(images, taps)

    return call
