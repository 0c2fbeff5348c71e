"""A table as it is laid out, before anyone says whether it becomes text, Markdown, CSV or LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table.

    Attributes:
        text: as people read it.
        mean, std: the numbers behind it, in the unit of the text; None where it is no number, or
            one without a spread.
        best: whether it is the best of those that it competes with.
    """

    text: str
    mean: float | None = None
    std: float | None = None
    best: bool = False


@dataclass(frozen=True)
class Heading:
    """What stands over a column; neighbours of one group share what stands over that."""

    name: str
    group: str = ""

    @property
    def joined(self) -> str:
        """Both in one line."""
        return f"{self.group} · {self.name}" if self.group else self.name


@dataclass(frozen=True)
class Table:
    """Lines of entries under headings.

    Attributes:
        block: how many of the first columns say where one block of lines ends and another begins.
        notes: sentences below it.
    """

    title: str
    headings: tuple[Heading, ...]
    lines: tuple[tuple[Entry, ...], ...]
    block: int = 1
    notes: tuple[str, ...] = ()


def as_percent(values: Sequence[float]) -> Entry:
    """Mean ± sample standard deviation of fractions, in per cent.

    >>> as_percent([0.80, 0.82]).text
    '81.0 ± 1.4'
    """
    mean = 100 * fmean(values)
    if len(values) < 2:
        return Entry(f"{mean:.1f}", mean)
    std = 100 * stdev(values)
    return Entry(f"{mean:.1f} ± {std:.1f}", mean, std)


def as_gain(values: Sequence[float]) -> Entry:
    """The same of differences, with a sign.

    >>> as_gain([0.02, 0.02]).text
    '+2.0 ± 0.0'
    """
    entry = as_percent(values)
    sign = "" if entry.text.startswith("-") else "+"
    return replace(entry, text=f"{sign}{entry.text}")


def with_best(entries: Sequence[Entry]) -> list[Entry]:
    """Mark the largest means of those that compete, if there is anything to win."""
    means = [round(entry.mean, 9) for entry in entries if entry.mean is not None]
    if len(means) < 2:
        return list(entries)
    return [
        replace(it, best=it.mean is not None and round(it.mean, 9) == max(means)) for it in entries
    ]
