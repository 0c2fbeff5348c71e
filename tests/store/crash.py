"""Writers that die, for processes of their own, because only such can be killed for real.

Those that die on their own do so (SIGKILL) at an open, rename or removal.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from rdcache.errors import StoreWriteError
from rdcache.store import StoreLayout, TapSpec

from .conftest import begin, fill, rows_of

SMALL = StoreLayout(
    samples=5,
    extents=(5, 3),
    taps=(TapSpec("map", "map2d", (2, 2, 2)), TapSpec("vector", "vector", (3,), "float32")),
    shard_samples=4,
)
WIDE = tuple(replace(tap, dtype="float32") for tap in SMALL.taps)
SLOW = StoreLayout(64, (64,), (TapSpec("map", "map2d", (64, 16, 16), "float32"),), shard_samples=2)
LIMIT_BYTES = 20_000


def write(location: Path, kill_at: int) -> None:
    die_at_event(kill_at, location)
    writer = begin(location, SMALL)
    fill(writer)
    writer.commit({})


def widen(location: Path, kill_at: int) -> None:
    writer = begin(location, SMALL)
    first = SMALL.shards()[0]
    tensors = {tap.name: rows_of(tap, first) for tap in SMALL.taps}
    writer.write(first, tensors, np.ones(first.stop, np.uint8))
    die_at_event(kill_at, location)
    writer.restart_with(WIDE)


def die_at_event(number: int, location: Path) -> None:
    """SIGKILL this process at its n-th open, rename or removal below a folder."""
    left = number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        writes = event in ("os.rename", "os.remove") or (event == "open" and arguments[1] == "w")
        if writes and str(arguments[0]).startswith(str(location)):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def crash_everywhere(folder: Path, run: Callable[[Path, int], None]) -> None:
    gc.freeze()  # or every child copies the pages of all modules when it collects garbage
    for number in range(1000):
        child = os.fork()
        if child == 0:
            run(folder / str(number), number)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return


def write_with_limit(location: Path) -> None:
    """Write under a limit of file size, and print the error."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        fill(begin(location, SLOW))
    except StoreWriteError as error:
        print(error)


def crash_writing(folder: Path) -> None:
    """Kill writers of FOLDER/0, FOLDER/1, … at their n-th event, until one survives."""
    crash_everywhere(folder, write)


def crash_widening(folder: Path) -> None:
    """The same, within a change of dtypes."""
    crash_everywhere(folder, widen)


def write_slowly(location: Path) -> None:
    """Write until killed from outside."""
    fill(begin(location, SLOW))
