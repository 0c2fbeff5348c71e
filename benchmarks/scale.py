"""How what a store costs before its first batch grows with the number of its samples.

python -m benchmarks.scale --out results
"""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from unittest.mock import patch

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.comparison import keep
from benchmarks.synthetic import write_store
from rdcache.distillation.sampling import TrainingSamples
from rdcache.store import StoreLayout, TapSpec, open_store

# Small numbers, but as many shards as features of 200 kB would have.
TAP = TapSpec("pooled", "vector", (256,))
VIEWS, SHARD_SAMPLES, BATCH, BATCHES = 8, 512, 32, 200
Facts = dict[str, float]
UNITS = {
    "start": "ms from the start of the process to the first batch",
    "whole": "MiB of anonymous memory at most",
    "open": "ms to open the store",
    "first": "ms to the first batch",
    "order": "ms to order the first epoch",
    "memory": "MiB of anonymous memory at most, above that after imports",
    "kept": "MiB of it that stay",
    "files": "open files after 200 batches",
}


@click.command()
@click.option("--rounds", default=5, show_default=True, help="Fresh processes for each size.")
@click.option("--short", is_flag=True, help="1,000 and 10,000 samples, one process each.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to write (default: /tmp).")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the numbers there, as JSON.")
@click.option("--measure", type=click.Path(path_type=Path), hidden=True)
@click.option("--started", type=float, default=0.0, hidden=True)
def main(
    rounds: int,
    short: bool,
    folder: Path | None,
    out: Path | None,
    measure: Path | None,
    started: float,
) -> None:
    """Open stores of 1,000, 10,000 and 100,000 samples in eight views, each in a new process."""
    if measure is not None:
        print(json.dumps(measured(measure, started)))
        return
    sizes = (1_000, 10_000) if short else (1_000, 10_000, 100_000)
    rounds = 1 if short else rounds
    with tempfile.TemporaryDirectory(dir=folder) as place:
        for size in sizes:
            layout = StoreLayout(size, (size,) * VIEWS, (TAP,), SHARD_SAMPLES)
            with patch("os.fsync"):  # nothing here has to survive a crash
                write_store(Path(place) / str(size), layout)
        found: dict[int, list[Facts]] = {size: [] for size in sizes}
        for _ in range(rounds):
            for size in sizes:
                found[size].append(_in_a_new_process(Path(place) / str(size)))
    medians = {
        size: {name: statistics.median(each[name] for each in runs) for name in UNITS}
        for size, runs in found.items()
    }
    show(medians)
    keep(out, "scale", {"rounds": rounds, "units": UNITS, "medians": medians})


def measured(location: Path, started: float) -> Facts:
    """What a store costs this process, which began at `started` and has imported everything."""
    before = _anonymous()
    with _peak() as peak:
        began = time.perf_counter()
        store = open_store(location)
        opened = time.perf_counter()
        generator = np.random.default_rng(0)
        store.read(generator.integers(0, store.samples, BATCH), generator.integers(0, VIEWS, BATCH))
        first, at = time.perf_counter(), time.time()
        training = TrainingSamples(store, 0)
        picks = training.batches(BATCH, 0)
        ordered = time.perf_counter()
        for number in generator.integers(0, len(picks), BATCHES):
            store.read(picks[number].samples, picks[number].views)
    return {
        "start": 1e3 * (at - started),
        "whole": max(peak),
        "open": 1e3 * (opened - began),
        "first": 1e3 * (first - opened),
        "order": 1e3 * (ordered - first),
        "memory": max(peak) - before,
        "kept": _anonymous() - before,
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
    }


def show(medians: dict[int, Facts]) -> None:
    """Print a table with, for each size, the ratio to the smallest."""
    table = Table(title=f"Stores of {VIEWS} views")
    table.add_column("")
    for size in medians:
        table.add_column(f"{size:,} samples", justify="right", no_wrap=True)
    smallest = next(iter(medians.values()))
    for name, unit in UNITS.items():
        cells = [
            f"{facts[name]:.3g}  (× {facts[name] / max(smallest[name], 1e-9):.2g})"
            for facts in medians.values()
        ]
        table.add_row(unit, *cells)
    Console().print(table)


def _in_a_new_process(location: Path) -> Facts:
    command = [sys.executable, "-m", "benchmarks.scale", "--measure", str(location)]
    command += ["--started", str(time.time())]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    facts: Facts = json.loads(done.stdout)
    return facts


@contextmanager
def _peak() -> Iterator[list[float]]:
    """Anonymous memory, looked at every few milliseconds."""
    seen, done = [_anonymous()], Event()

    def look() -> None:
        while not done.wait(0.002):
            seen.append(_anonymous())

    thread = Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        done.set()
        thread.join()


def _anonymous() -> float:
    """MiB of this process's memory that are no file's."""
    status = Path("/proc/self/status").read_text()
    (kilobytes,) = re.findall(r"RssAnon:\s+(\d+) kB", status)
    return int(kilobytes) / 1024


if __name__ == "__main__":
    main()
