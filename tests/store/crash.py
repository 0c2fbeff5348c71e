"""Writers that die: run as a program, because only a process of its own can be killed for real.

python -m store.crash FOLDER      for n = 0, 1, …: a forked process writes FOLDER/n and kills itself
                            (SIGKILL) at its n-th open or rename, until one survives
python -m store.crash --widen …   the same, with a change of dtype after the first shard
python -m store.crash --slow …    writes FOLDER with large shards until it is killed from outside
python -m store.crash --limit …   writes FOLDER under a file size limit and prints the error
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from dataclasses import replace
from pathlib import Path

from rdcache.errors import StoreWriteError
from rdcache.store import StoreLayout, StoreWriter, TapSpec

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


def write(location: Path) -> None:
    writer = begin(location, SMALL)
    fill(writer)
    writer.commit({})


def widen(location: Path) -> None:
    writer = begin(location, SMALL)
    if writer.layout.taps != WIDE:
        write_one(writer)
        writer = writer.restart_with(WIDE)
    fill(writer)
    writer.commit({})


def write_one(writer: StoreWriter) -> None:
    for shard in writer.missing()[:1]:
        tensors = {tap.name: rows_of(tap, shard) for tap in writer.layout.taps}
        writer.write(shard, tensors, outcome=tensors["vector"][:, 0].astype("uint8") * 0 + 1)


def die_at_event(number: int, location: Path) -> None:
    """SIGKILL this process at its n-th open or rename below a folder."""
    left = number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in ("open", "os.rename", "os.remove") and str(arguments[0]).startswith(
            str(location)
        ):
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def crash_everywhere(folder: Path, run) -> None:
    for number in range(1000):
        child = os.fork()
        if child == 0:
            die_at_event(number, folder / str(number))
            run(folder / str(number))
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            return


def write_with_limit(location: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        fill(begin(location, SLOW))
    except StoreWriteError as error:
        print(error)


if __name__ == "__main__":
    target = Path(sys.argv[-1])
    match sys.argv[1]:
        case "--widen":
            crash_everywhere(target, widen)
        case "--slow":
            fill(begin(target, SLOW))
        case "--limit":
            write_with_limit(target)
        case _:
            crash_everywhere(target, write)
