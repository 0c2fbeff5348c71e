"""Reading random batches: warm, with every payload checked as it is first read, and cold.

python -m benchmarks.read --out results
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.comparison import Contender, Line, compare, keep, show
from benchmarks.read_formats import (
    BATCH,
    SAMPLE,
    TAP,
    Reader,
    equals,
    open_plain,
    readers,
    write_truth,
)
from rdcache.store import Store, open_store

SAMPLE_BYTES = 2 * int(np.prod(SAMPLE))
BATCHES_A_TURN = 32
EPOCHS = 10  # over which a check of everything is spread
THREADS = 8
BASELINE, PREAD = "np.memmap, fancy indexing", f"pread, {THREADS} threads"
AIMS = {"rdcache, reused buffer": 0.9, "rdcache, fresh batch": 0.9}
CHECKED_AIMS = {"rdcache, each payload checked once": 0.85}
COLD_AIMS = {"rdcache": 0.7}
# Against others: how many times faster than they the fresh batch should be.
TIMES = {"zarr-python a[i], its own array": 50, "zarr-python a[i], the store": 50}
TIMES |= {"tensorstore, its own array": 4, "tensorstore, the store": 4, "h5py read_direct": 4}


@click.command()
@click.option("--samples", default=4096, show_default=True, help="Samples of 200,704 bytes.")
@click.option("--rounds", default=15, show_default=True, help="Turns of each contender.")
@click.option("--short", is_flag=True, help="768 samples and 3 rounds.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write (default: /tmp).")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the numbers there, as JSON.")
def main(samples: int, rounds: int, short: bool, folder: Path | None, out: Path | None) -> None:
    """Compare ways to read random batches of 32 samples from local files."""
    if short:
        samples, rounds = 768, 3
    with tempfile.TemporaryDirectory(dir=folder) as place:
        location, plain = write_truth(Path(place), samples)
        generator = np.random.default_rng(0)
        measured = {
            "warm": warm(Path(place), location, plain, rounds, generator),
            "checked": checked(location, plain, max(rounds // 3, 1), generator),
            "cold": cold(location, plain, max(rounds // 3, 1), generator),
        }
    keep(out, "read", {"samples": samples, "rounds": rounds, **measured})


def warm(
    folder: Path, location: Path, plain: Path, rounds: int, generator: np.random.Generator
) -> list[Line]:
    """Everything is in the page cache; a call is so many batches that what the contender before
    left in the processor's caches matters little. Each reader draws its own: what one has just read
    is in those caches for the next.
    """
    store, truth = open_store(location), open_plain(plain)
    found = readers(folder, store, plain)
    gc.collect()  # the store that was written refers to itself; what is mapped cannot be dropped
    drop_and_read(path for path in folder.rglob("*") if path.is_file())
    first = np.arange(BATCH)
    for reader in found:
        if not equals(reader.read(first), truth[first]):
            raise SystemExit(f"{reader.name} does not read what was written.")
    contenders = [
        Contender(reader.name, _batches_of(reader, len(truth), generator)) for reader in found
    ]
    lines = compare(contenders, BASELINE, rounds, AIMS)
    show("Warm, random batches of 32", lines, BATCHES_A_TURN * BATCH * SAMPLE_BYTES / 2**30, "GiB")
    own = {line.name: line.seconds for line in lines}
    for name, aim in TIMES.items():
        if name in own:
            times = own[name] / own["rdcache, fresh batch"]
            print(f"rdcache, fresh batch, is {times:.1f} times as fast as {name} (aim: {aim})")
    return lines


def _batches_of(reader: Reader, samples: int, generator: np.random.Generator) -> Callable[[], None]:
    def run() -> None:
        for _ in range(BATCHES_A_TURN):
            reader.read(generator.choice(samples, BATCH, replace=False, shuffle=False))

    return run


def checked(location: Path, plain: Path, rounds: int, generator: np.random.Generator) -> list[Line]:
    """A call opens the store and reads it whole ten times in random order: what a check of every
    payload as it is first read comes to in a training of ten epochs.
    """
    samples = len(open_plain(plain))

    def epochs(read: Callable[[np.ndarray], object]) -> None:
        for _ in range(EPOCHS):
            for picks in _batches(generator.permutation(samples)):
                read(picks)

    def mapped() -> None:
        truth = open_plain(plain)
        epochs(lambda picks: truth[picks])

    def stored(verify: bool) -> None:
        opened = open_store(location, verify_shards=verify)
        epochs(lambda picks: opened.read(picks, 0))

    contenders = [
        Contender(BASELINE, mapped),
        Contender("rdcache", lambda: stored(False)),
        Contender("rdcache, each payload checked once", lambda: stored(True)),
    ]
    lines = compare(contenders, BASELINE, rounds, CHECKED_AIMS)
    work = EPOCHS * (samples // BATCH) * BATCH * SAMPLE_BYTES / 2**30
    show("Ten epochs, opened anew", lines, work, "GiB")
    return lines


def cold(location: Path, plain: Path, rounds: int, generator: np.random.Generator) -> list[Line]:
    """Nothing is in the page cache; a call reads a quarter of the samples in random batches."""
    files = [plain, *(path for path in location.rglob("*") if path.is_file())]
    samples = len(open_plain(plain))
    reading = _Cold(location, plain)

    def before() -> None:
        reading.close()
        gc.collect()  # an open store refers to itself; mapped pages cannot be dropped
        drop(files)
        reading.open(generator.permutation(samples)[: samples // 4])

    contenders = [
        Contender(name, run, before)
        for name, run in {
            PREAD: lambda: reading.pread(THREADS),
            "pread, 1 thread": lambda: reading.pread(1),
            "np.memmap, fancy indexing": reading.mapped,
            "rdcache": reading.stored,
        }.items()
    ]
    lines = compare(contenders, PREAD, rounds, COLD_AIMS)
    work = samples // 4 // BATCH * BATCH * SAMPLE_BYTES / 2**30
    show("Cold, random batches of 32", lines, work, "GiB")
    return lines


class _Cold:
    """What is opened anew for each cold call."""

    def __init__(self, location: Path, plain: Path) -> None:
        self.location, self.plain = location, plain
        self.rows = np.empty((BATCH, SAMPLE_BYTES), np.uint8)
        self.store: Store | None = None

    def close(self) -> None:
        self.store = None

    def open(self, picks: np.ndarray) -> None:
        self.picks = picks
        self.store = open_store(self.location)

    def stored(self) -> None:
        assert self.store is not None
        for picks in _batches(self.picks):
            self.store.read(picks, 0, [TAP])

    def mapped(self) -> None:
        truth = open_plain(self.plain)
        for picks in _batches(self.picks):
            truth[picks]

    def pread(self, threads: int) -> None:
        with _opened(self.plain) as descriptor, ThreadPoolExecutor(threads) as pool:

            def read(row: int, pick: int) -> None:
                os.preadv(descriptor, [self.rows[row]], pick * SAMPLE_BYTES)

            for picks in _batches(self.picks):
                list(pool.map(read, range(BATCH), picks.tolist()))


def _batches(samples: np.ndarray) -> Iterator[np.ndarray]:
    for stop in range(BATCH, len(samples) + 1, BATCH):
        yield samples[stop - BATCH : stop]


def drop(files: Iterable[Path]) -> None:
    """Have the page cache forget files, and see that it has."""
    for path in files:
        with _opened(path) as descriptor:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        if path.stat().st_size and (left := _resident(path)) > 0.01:
            raise SystemExit(f"{left:.0%} of {path} stayed in memory: nothing here is cold.")


def drop_and_read(files: Iterable[Path]) -> None:
    """Have all files in the page cache as they come from a disk: how a library writes decides how
    large the pages are that its file has until then.
    """
    found = list(files)
    drop(found)
    for path in found:
        with _opened(path) as descriptor:
            while os.read(descriptor, 2**20):
                pass


def _resident(path: Path) -> float:
    """The share of a file that is in memory."""
    content: Any = np.memmap(path, np.uint8, "r")
    pages = (ctypes.c_ubyte * -(-content.size // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    address, size = ctypes.c_void_p(content.ctypes.data), ctypes.c_size_t(content.size)
    if libc.mincore(address, size, pages):
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(page & 1 for page in pages) / len(pages)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


if __name__ == "__main__":
    main()
