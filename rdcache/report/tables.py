"""A table as it is laid out, before anyone says whether it becomes text, Markdown, CSV or LaTeX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev

SURE = 0.05
MARK = " †"


@dataclass(frozen=True)
class Entry:
    """What stands in one place of a table.

    Attributes:
        text: as people read it.
        mean: the number behind it, in the unit of its heading; None where it is no number.
        further: what else the text says, by name: `std`, or the bounds `low` and `high`.
        best: whether it is the best of those that it competes with.
    """

    text: str
    mean: float | None = None
    further: Mapping[str, float] = field(default_factory=dict)
    best: bool = False


MISSING = Entry("–")


@dataclass(frozen=True)
class Heading:
    """What stands over a column; neighbours of one group share what stands over that.

    Attributes:
        unit: of the numbers below, for those who read numbers alone.
        aside: what people should know of the texts below.
    """

    name: str
    group: str = ""
    unit: str = ""
    aside: str = ""

    @property
    def shown(self) -> str:
        """As it stands below its group."""
        return f"{self.name} ({self.aside})" if self.aside else self.name

    @property
    def joined(self) -> str:
        """Both in one line."""
        return f"{self.group} · {self.shown}" if self.group else self.shown

    def of_number(self, which: str = "") -> str:
        """Over a column of numbers alone.

        >>> Heading("accuracy", "busi", "%").of_number("std")
        'busi · accuracy std (%)'
        """
        name = " · ".join(filter(None, (self.group, self.name)))
        name = f"{name} {which}".strip()
        return f"{name} ({self.unit})" if self.unit else name


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
    return Entry(f"{mean:.1f} ± {std:.1f}", mean, {"std": std})


def as_distance(values: Sequence[float]) -> Entry:
    """Mean ± sample standard deviation of distances.

    >>> as_distance([2.0, 3.0]).text
    '2.50 ± 0.71'
    """
    mean = fmean(values)
    if len(values) < 2:
        return Entry(f"{mean:.2f}", mean)
    std = stdev(values)
    return Entry(f"{mean:.2f} ± {std:.2f}", mean, {"std": std})


def as_gain(values: Sequence[float]) -> Entry:
    """The same of differences, with a sign.

    >>> as_gain([0.02, 0.02]).text
    '+2.0 ± 0.0'
    """
    entry = as_percent(values)
    sign = "" if entry.text.startswith("-") else "+"
    return replace(entry, text=f"{sign}{entry.text}")


def with_best(entries: Sequence[Entry], competing: Sequence[bool]) -> list[Entry]:
    """Mark the largest means of those that compete, if there is anything to win."""
    means = [
        round(entry.mean, 9) if entry.mean is not None and competes else None
        for entry, competes in zip(entries, competing, strict=True)
    ]
    known = [mean for mean in means if mean is not None]
    if len(known) < 2:
        return list(entries)
    return [
        replace(entry, best=mean is not None and mean == max(known))
        for entry, mean in zip(entries, means, strict=True)
    ]
