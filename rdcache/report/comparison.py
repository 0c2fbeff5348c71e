"""Methods side by side: what each row gained over the baseline's, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, stdev
from typing import Any

from rdcache.errors import UnknownNameError
from rdcache.report.predictions import in_step
from rdcache.report.rows import LEAK_FREE, PLAIN, Row
from rdcache.report.significance import Gain, ImageTest, image_test, paired_gain

OF_IMAGES = ("accuracy", LEAK_FREE)  # metrics that are means over test images


@dataclass(frozen=True)
class Comparison:
    """A row beside the baseline of the same dataset, teacher and student.

    Attributes:
        base: the baseline's row; None for itself, and where there is none.
        metric: what is compared.
    """

    row: Row
    base: Row | None
    metric: str

    @property
    def values(self) -> Mapping[int, float]:
        """Seed → metric."""
        return self.row.values.get(self.metric, {})

    @cached_property
    def gain(self) -> Gain | None:
        """Over seeds: the mean paired difference and its interval."""
        if self.base is None:
            return None
        return paired_gain(self.values, self.base.values.get(self.metric, {}))

    @cached_property
    def images(self) -> ImageTest | None:
        """Over test images; None for metrics that are no means over images."""
        if self.base is None or self.metric not in OF_IMAGES:
            return None
        left_out = self.row.leaked if self.metric == LEAK_FREE else frozenset[str]()
        both = in_step([self.row.predictions, self.base.predictions], left_out)
        return None if both is None else image_test(*both)

    @property
    def unequal(self) -> dict[str, tuple[Any, Any]]:
        """Options of the training in which the two differ: name → (the row's, the baseline's)."""
        if self.base is None or not self.row.training or not self.base.training:
            return {}
        own, other = self.row.training, self.base.training
        names = sorted(own.keys() | other.keys())
        return {n: (own.get(n), other.get(n)) for n in names if own.get(n) != other.get(n)}


def compare(
    rows: Sequence[Row], metric: str = "accuracy", baseline: str = PLAIN
) -> list[Comparison]:
    """Pair every row with the baseline method's row of the same dataset, teacher and student.

    Where a teacher has no plain student beside it, that of another teacher does, if it was trained
    alike on the same images: it reads no teacher.
    """
    bases = {row.place: row for row in rows if row.method == baseline}
    plain = [row for row in bases.values() if baseline == PLAIN]

    def base_of(row: Row) -> Row | None:
        if row.place in bases:
            return bases[row.place] if bases[row.place] is not row else None
        return next((other for other in plain if _alike(row, other)), None)

    return [Comparison(row, base_of(row), metric) for row in rows]


def _alike(row: Row, other: Row) -> bool:
    """Whether two rows differ in nothing but teacher and method."""
    own = (row.dataset, row.student, row.training, row.sizes, row.leaked)
    return own == (other.dataset, other.student, other.training, other.sizes, other.leaked)


def require_names(rows: Sequence[Row], metric: str, baseline: str) -> None:
    """Refuse a metric that no run has, or a baseline that is no row. Without plain students, the
    usual baseline, there are no gains to be shown; a grid may have yet to come to them.

    Raises:
        UnknownNameError: naming what there is.
    """
    metrics = {name for row in rows for name in row.values}
    if metric not in metrics:
        raise UnknownNameError.of("metric in these runs", metric, metrics)
    methods = {row.method for row in rows}
    if baseline not in methods and baseline != PLAIN:
        raise UnknownNameError.of("row", baseline, methods)


def in_percent(values: Sequence[float]) -> str:
    """Mean ± sample standard deviation, in per cent.

    >>> in_percent([0.80, 0.82])
    '81.0 ± 1.4'
    """
    spread = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"


def in_points(gain: Gain | None) -> str:
    """A gain and its interval in percentage points; nothing where there is none."""
    if gain is None:
        return ""
    if gain.pairs == 1:
        return f"{100 * gain.mean:+.1f}"
    return f"{100 * gain.mean:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})"
