"""`--precision auto`: which arithmetic the teacher is to have, and why.

The precision is part of the fingerprint: a store that is there already says which one it was, so
that an extraction is resumed, or joined, with the answer that it began with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Literal

import torch

from rdcache.errors import StoreFormatError, StoreNotFoundError, UnsafeFileError
from rdcache.models import Teacher
from rdcache.models.devices import has_bfloat16
from rdcache.probing import MARGIN, fastest
from rdcache.progress import Progress, ignore
from rdcache.store import Location, read_manifest

Precision = Literal["float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
PROBE_BATCH = 8


def precision_of_store(places: Mapping[Precision, Location]) -> tuple[Precision, str] | None:
    """That of a store which is there already, complete or at least begun, and a few words that say
    so; None where there is none.

    Args:
        places: where the store lies, or would lie, in each precision.

    Raises:
        BucketError: the bucket does not answer.
    """
    complete: dict[Precision, bool] = {}
    for precision, location in places.items():
        with suppress(StoreNotFoundError, StoreFormatError, UnsafeFileError):
            complete[precision] = read_manifest(location).get("complete") is True
    if not complete:
        return None
    precision = max(complete, key=lambda each: complete[each])
    return precision, f"a store of it is {'complete' if complete[precision] else 'begun'} here"


def chosen_precision(
    teacher: Teacher, taps: Sequence[str], on_progress: Progress = ignore
) -> tuple[Precision, str]:
    """bfloat16 where it is faster, else float32; and a few words that say why.

    A GPU that computes in bfloat16 always gets it. On a CPU the teacher is timed once, and the
    answer is kept (see `probing`), so that it does not flip.
    """
    if teacher.device.type == "cuda":
        if has_bfloat16(teacher.device):
            return "bfloat16", "this GPU has it"
        return "float32", "this GPU has no bfloat16"
    if teacher.device.type != "cpu":
        return "float32", f"bfloat16 is not tried on {teacher.device.type}"
    on_progress(0, 1, "timing float32 and bfloat16")
    choice = fastest(
        {
            "work": "a teacher's forward pass",
            "architecture": teacher.architecture,
            "weights": teacher.weights.sha256,
            "size": _size(teacher),
            "taps": list(taps),
        },
        {"float32": _forward(teacher, taps, False), "bfloat16": _forward(teacher, taps, True)},
    )
    faster = choice.seconds["float32"] / choice.seconds["bfloat16"]
    when = "measured earlier" if choice.cached else "measured now"
    said = f"bfloat16 is {faster:.3g} times as fast as float32 here"
    if choice.name == "bfloat16":
        return "bfloat16", f"{said}, at least the {MARGIN:g} times that count, {when}"
    return "float32", f"{said}, less than the {MARGIN:g} times that count, {when}"


@contextmanager
def arithmetic(device: torch.device, precision: str) -> Iterator[None]:
    """What forward passes of a teacher compute in: bfloat16, or float32 in earnest. Unless told
    otherwise PyTorch lets a GPU's convolutions round float32 to TF32, which keeps 10 bits of 23,
    and stores of a CPU and of a GPU would differ in more than the last bits.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _size(teacher: Teacher) -> int | list[int]:
    """Side of the image, or all that the input of a teacher of volumes measures."""
    return teacher.input_shape[-1] if teacher.dimensions == 2 else list(teacher.input_shape)


def _forward(teacher: Teacher, taps: Sequence[str], autocast: bool) -> Callable[[], object]:
    count = PROBE_BATCH if teacher.dimensions == 2 else 1
    images = torch.zeros(count, *teacher.input_shape)

    def call() -> object:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return teacher.forward_taps(images, taps)

    return call
