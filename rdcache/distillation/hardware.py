"""Where a run computes: device, precision, threads."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from typing import Any

import torch

import rdcache
from rdcache.errors import DeviceMemoryError
from rdcache.models import Student


def autocast_for(device: torch.device, amp: str) -> Callable[[], AbstractContextManager[object]]:
    """The context of forward passes: in bfloat16 where that was chosen."""
    return lambda: torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp == "bf16")


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use so many CPU threads for a while."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def within_device_memory() -> Iterator[None]:
    """Say in a sentence what to do where a GPU's memory does not suffice.

    Raises:
        DeviceMemoryError: it does not.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            "this training does not fit into the GPU's memory.",
            why=str(error).partition(". ")[0],
            next="a smaller --batch-size, fewer students at once, or --resident host",
        ) from error


class Stopwatch:
    """Adds up how long pieces of work take; on a GPU by its own clock, since nobody waits for it
    between them.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._stream = torch.cuda.current_stream(device) if self._on_gpu else None
        self._seconds = 0.0
        self._pieces: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Measure a piece of work."""
        if not self._on_gpu:
            start = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - start
            return
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        began.record(self._stream)
        yield
        ended.record(self._stream)
        self._pieces.append((began, ended))

    def seconds(self) -> float:
        """All pieces so far; waits for the GPU."""
        for began, ended in self._pieces:
            ended.synchronize()
            self._seconds += began.elapsed_time(ended) / 1e3
        self._pieces.clear()
        return self._seconds


def environment(device: torch.device) -> dict[str, Any]:
    """With what a run was made."""
    return {
        "rdcache": rdcache.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def on_device(student: Student, device: torch.device) -> Student:
    """A student where it is trained or run, in the order in memory that is fastest there."""
    if student.dimensions == 3:
        return student.to(device)
    return student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
