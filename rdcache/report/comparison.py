"""Methods side by side: what each row gained over the baseline's, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rdcache.errors import UnknownNameError
from rdcache.report.predictions import in_step, same_images
from rdcache.report.rows import PLAIN, Row
from rdcache.report.significance import Gain, ImageTest, image_test, paired_gain
from rdcache.report.tables import as_percent

OF_IMAGES = ("accuracy", "dice")  # headlines that are means over test images


@dataclass(frozen=True)
class Comparison:
    """A row beside the baseline of the same dataset, teacher and student.

    Attributes:
        base: the baseline's row; None for itself, and where there is none.
        metric: what is compared.
        candidates: rows of the baseline's method of which none was trained as this row, and none
            could be chosen.
    """

    row: Row
    base: Row | None
    metric: str
    candidates: tuple[str, ...] = ()

    @property
    def values(self) -> Mapping[int, float]:
        """Seed → metric."""
        return self.row.values.get(self.metric, {})

    @cached_property
    def same_images(self) -> bool:
        """Whether all runs of both rows are told by the same images, as far as that is known."""
        if self.base is None:
            return True
        if self.row.split == "val":
            digests = {row.data.get("dataset digest") for row in (self.row, self.base)} - {None}
            alike = self.row.sizes.get("val") == self.base.sizes.get("val")
            return alike and len(digests) < 2
        return same_images([self.row.predictions, self.base.predictions])

    @property
    def pairs(self) -> tuple[Mapping[int, float], Mapping[int, float]]:
        """Seed → metric, of the row and of the baseline, for the seeds that both have; nothing
        where they were tested on other images.
        """
        if self.base is None or not self.same_images:
            return {}, {}
        base = self.base.values.get(self.metric, {})
        seeds = [seed for seed in self.values if seed in base]
        return {seed: self.values[seed] for seed in seeds}, {seed: base[seed] for seed in seeds}

    @property
    def differences(self) -> dict[int, float]:
        """Seed → metric minus the baseline's."""
        own, base = self.pairs
        return {seed: value - base[seed] for seed, value in own.items()}

    @cached_property
    def gain(self) -> Gain | None:
        """Over seeds: the mean paired difference and its interval."""
        return paired_gain(*self.pairs)

    @property
    def of_images(self) -> bool:
        """Whether the metric is a mean over test images, whose values are kept one by one."""
        row = self.row
        known = row.split == "test" and row.headline in OF_IMAGES
        return known and self.metric in (row.headline, row.leak_free)

    @cached_property
    def images(self) -> ImageTest | None:
        """Over test images; None for metrics that are no means over images."""
        seeds = self.differences.keys()
        if self.base is None or not self.of_images or not seeds:
            return None
        without = self.metric == self.row.leak_free
        left_out = self.row.leaked if without else frozenset[str]()
        several = [
            {seed: path for seed, path in row.predictions.items() if seed in seeds}
            for row in (self.row, self.base)
        ]
        both = in_step(several, left_out)
        return None if both is None else image_test(*both)

    @property
    def unequal(self) -> dict[str, tuple[Any, Any]]:
        """Options of the training, and facts about the data, in which the two differ: name → (the
        row's, the baseline's).
        """
        if self.base is None:
            return {}
        differing: dict[str, tuple[Any, Any]] = {}
        for own, other in (
            (self.row.training, self.base.training),
            (self.row.data, self.base.data),
        ):
            if own and other:
                names = sorted(own.keys() | other.keys())
                differing |= {
                    n: (own.get(n), other.get(n)) for n in names if own.get(n) != other.get(n)
                }
        return differing


def compare(
    rows: Sequence[Row], metric: str | None = None, baseline: str = PLAIN
) -> list[Comparison]:
    """Pair every row with the baseline's row of the same dataset, teacher and student.

    Without a metric each row is compared by the headline of its task.

    The baseline is the row of that name, or else the one of that method: of several, as `none
    (epochs=40)` and `none (epochs=240)`, the one that was trained as the row was. Where a teacher
    has no plain student beside it, that of another teacher does, if it was trained alike on the
    same images: it reads no teacher.
    """
    return [_compared(row, rows, metric or row.headline, baseline) for row in rows]


def _compared(row: Row, rows: Sequence[Row], metric: str, baseline: str) -> Comparison:
    beside = [other for other in rows if other.place == row.place]
    named = [other for other in beside if other.method == baseline]
    if named:
        return Comparison(row, None if named[0] is row else named[0], metric)
    if row.is_of(baseline):
        return Comparison(row, None, metric)
    candidates = [other for other in beside if other.is_of(baseline)]
    alike = [other for other in candidates if row.trained_as(other)]
    alike = [other for other in alike if other.training == row.training] or alike
    if len(alike) == 1 or len(candidates) == 1:
        return Comparison(row, (alike or candidates)[0], metric)
    if candidates:
        return Comparison(row, None, metric, tuple(other.method for other in candidates))
    elsewhere = (
        other
        for other in rows
        if baseline == PLAIN
        and other.is_of(PLAIN)
        and (other.dataset, other.student) == (row.dataset, row.student)
        and row.trained_as(other)
    )
    return Comparison(row, next(elsewhere, None), metric)


def require_names(rows: Sequence[Row], metric: str | None, baseline: str) -> None:
    """Refuse a metric that no run has, or a baseline that is no row. Without plain students, the
    usual baseline, there are no gains to be shown; a grid may have yet to come to them, and one in
    which everything diverged has no metric at all.

    Raises:
        UnknownNameError: naming what there is.
    """
    metrics = {name for row in rows for name in row.values}
    if metric is not None and metrics and metric not in metrics:
        raise UnknownNameError.of("metric in these runs", metric, metrics)
    known = any(row.method == baseline or row.is_of(baseline) for row in rows)
    if not known and baseline != PLAIN:
        raise UnknownNameError.of("row", baseline, {row.method for row in rows})


def in_percent(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation, in per cent.

    >>> in_percent([0.80, 0.82])
    '81.0 ± 1.4'
    """
    return as_percent(values).text


def in_points(gain: Gain | None) -> str:
    """A gain and its interval in percentage points; nothing where there is none."""
    if gain is None:
        return ""
    if gain.pairs == 1:
        return f"{100 * gain.mean:+.1f}"
    return f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
