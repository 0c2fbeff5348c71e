"""What commands print: one JSON object for machines, tables and progress bars for people."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.table import Table
from rich.text import Text

from rdcache.progress import Progress

if TYPE_CHECKING:
    from rdcache.store import TapSpec

PLAIN_LINE_SECONDS = 15.0

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def print_json(value: object) -> None:
    """Print one JSON object on standard output, and nothing else. JSON has no infinite numbers and
    no NaN: these are null.
    """
    click.echo(json.dumps(_in_json(value), indent=2, default=str, allow_nan=False))


def _in_json(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _in_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_in_json(item) for item in value]
    return value


def print_note(note: str) -> None:
    """Print a remark on standard error, beside the results."""
    click.echo(note[:1].upper() + note[1:], err=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table as wide as the terminal; wide enough for every cell when piped."""
    console = Console() if sys.stdout.isatty() else Console(width=160)
    table = Table(title=title, title_justify="left", show_lines=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console.print(table)


def print_facts(summary: str, facts: dict[str, object]) -> None:
    """Print a line and aligned facts below it, in the form of our error messages."""
    click.echo(summary)
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        first, *more = printable(value).splitlines() or [""]
        click.echo(f"  {name:<{width}}   {first}")
        for line in more:
            click.echo(f"  {'':<{width}}   {line}")


def printable(value: object) -> str:
    """A text without what would command the terminal: stores and files may come from anyone."""
    return "".join(it if it.isprintable() or it == "\n" else "\ufffd" for it in str(value))


def in_age(moment: str) -> str:
    """How long ago a moment was, given as ISO 8601 with its time zone; empty where it is none."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(moment)).total_seconds()
    except (ValueError, TypeError):
        return ""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"


def in_bytes(count: float) -> str:
    """A size as people read it, in powers of 1000.

    >>> in_bytes(157_351_936)
    '157.4 MB'
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def described(tap: TapSpec) -> str:
    """A tap as people read it.

    >>> from rdcache.store import TapSpec
    >>> described(TapSpec("s4", "map2d", (64, 7, 7), "int8", "zstd", 1280))
    's4 64×7×7 int8 zstd, projected from 1280 channels'
    """
    codec = "" if tap.codec == "none" else f" {tap.codec}"
    before = f", projected from {tap.projected_from} channels" if tap.projected_from else ""
    return f"{tap.name} {'×'.join(map(str, tap.shape))} {tap.dtype}{codec}{before}"


def fidelity_lines(manifest: Mapping[str, Any]) -> list[str]:
    """How near stored taps are to the teacher's, one line for each that is not kept as it was."""
    return [
        f"{tap}: cosine {it['cosine']:.4f}, "
        + ("" if it["cka"] is None else f"CKA {it['cka']:.4f}, ")
        + f"{it['ratio']:.1f} times smaller than in float16"
        for tap, it in manifest.get("fidelity", {}).items()
    ]


def in_percent(summary: Mapping[str, float]) -> str:
    """Mean ± standard deviation of `rdcache.distillation.summarise`, in per cent.

    >>> in_percent({"mean": 0.815, "std": 0.014, "n": 3})
    '81.5 ± 1.4'
    """
    spread = f" ± {100 * summary['std']:.1f}" if summary["n"] > 1 else ""
    return f"{100 * summary['mean']:.1f}{spread}"


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "", style="progress.data.speed")


@contextmanager
def progress(title: str) -> Iterator[Progress]:
    """A progress bar with rate and time left on a terminal, plain lines now and then elsewhere."""
    if sys.stderr.isatty():
        with RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        ) as bars:
            yield _Bar(bars, title)
    else:
        yield _PlainLines(title)


class _Bar:
    def __init__(self, bars: RichProgress, title: str) -> None:
        self.bars = bars
        self.title = title
        self.tasks: dict[str, Any] = {}

    def __call__(self, done: int, total: int, note: str = "") -> None:
        label = f"{self.title} {note}".strip()
        if label not in self.tasks:
            for task in self.tasks.values():
                self.bars.stop_task(task)
            self.tasks[label] = self.bars.add_task(label, total=total)
        self.bars.update(self.tasks[label], completed=done, total=total)


class _PlainLines:
    def __init__(self, title: str) -> None:
        self.title = title
        self.stage = ""
        self.began = self.printed = time.monotonic()
        self.done_at_start = 0

    def __call__(self, done: int, total: int, note: str = "") -> None:
        now = time.monotonic()
        if note != self.stage:
            self.stage, self.began, self.done_at_start, self.printed = note, now, done, now
        if now - self.printed < PLAIN_LINE_SECONDS:
            return
        self.printed = now
        rate = (done - self.done_at_start) / (now - self.began)
        left = f", {(total - done) / rate:.0f} s left" if rate else ""
        click.echo(
            f"{self.title} {note}".strip() + f": {done}/{total}, {rate:.1f}/s{left}", err=True
        )
