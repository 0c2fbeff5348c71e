"""How benchmarks compare: contenders take turns, each round is timed for all, and what is printed
are medians of the ratios to a baseline that was timed in the same round.

A machine that is shared, or that changes its clock, changes all of a round alike; the ratios stay.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from rdcache.probing import cpu_name

Facts = Mapping[str, object]


@dataclass(frozen=True)
class Contender:
    """One way to do a piece of work.

    Attributes:
        run: does it once; every contender's call does the same amount.
        before: what comes before each call and is not timed.
    """

    name: str
    run: Callable[[], object]
    before: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Line:
    """What came out for one contender.

    Attributes:
        seconds: median of a call.
        ratio: median of (seconds of the baseline / seconds of this) within a round: 2 is twice as
            fast as the baseline.
        lowest, highest: the outermost of these ratios.
        aim: what the ratio should be at least, where there is such a thing.
    """

    name: str
    seconds: float
    ratio: float
    lowest: float
    highest: float
    aim: float | None = None


def compare(
    contenders: Sequence[Contender],
    baseline: str,
    rounds: int,
    aims: Mapping[str, float] | None = None,
) -> list[Line]:
    """Let contenders take turns for some rounds, after one that does not count.

    Every other round goes through them backwards, so that nobody always comes first.

    Args:
        baseline: name of the contender that the others are compared with.
        aims: contender → what its ratio should be at least.
    """
    seconds: dict[str, list[float]] = {each.name: [] for each in contenders}
    for number in range(rounds + 1):
        for each in contenders if number % 2 else reversed(contenders):
            each.before()
            began = time.perf_counter()
            each.run()
            if number:
                seconds[each.name].append(time.perf_counter() - began)
    return [_line(name, taken, seconds[baseline], aims or {}) for name, taken in seconds.items()]


def _line(
    name: str, seconds: list[float], of_baseline: list[float], aims: Mapping[str, float]
) -> Line:
    ratios = [base / own for base, own in zip(of_baseline, seconds, strict=True)]
    middle = statistics.median
    return Line(name, middle(seconds), middle(ratios), min(ratios), max(ratios), aims.get(name))


def show(title: str, lines: Sequence[Line], work: float, unit: str) -> None:
    """Print a table.

    Args:
        work: how much one call does, in `unit`s; with it comes a rate.
    """
    table = Table(title=title)
    table.add_column("", no_wrap=True)
    for header in (f"{unit}/s", "ratio", "from … to", "aim"):
        table.add_column(header, justify="right", no_wrap=True)
    for line in lines:
        table.add_row(
            escape(line.name),
            f"{work / line.seconds:,.4g}",
            f"{line.ratio:.3g}",
            f"{line.lowest:.3g} … {line.highest:.3g}",
            "" if line.aim is None else f"≥ {line.aim:g}",
        )
    Console().print(table)


def keep(out: Path | None, benchmark: str, content: Facts) -> None:
    """Write what was measured, and on what, as `OUT/BENCHMARK.json`."""
    if out is None:
        return
    out.mkdir(parents=True, exist_ok=True)
    measured = {"benchmark": benchmark, "machine": machine(), **content}
    (out / f"{benchmark}.json").write_text(json.dumps(measured, indent=1, default=vars))


def machine() -> dict[str, object]:
    """On what, with what and when something is measured."""
    packages = ("rdcache", "torch", "numpy", "zarr", "tensorstore", "h5py", "litdata", "webdataset")
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "memory_GiB": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
