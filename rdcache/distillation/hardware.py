"""Where a run computes: device, precision, threads."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib.metadata import version
from typing import Any

import torch

import rdcache


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


def environment(device: torch.device) -> dict[str, Any]:
    """With what a run was made."""
    return {
        "rdcache": rdcache.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "numpy", "pillow")},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }
