"""A learning curve as a picture: training images on a logarithmic axis, the metric, its spread.

matplotlib draws it; it is imported only here, and needs no screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rdcache.report.learning_curve import Line
from rdcache.report.picture_files import require_drawable, save_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH, HEIGHT, COLUMNS = 5.0, 4.0, 3  # of a panel, in inches; panels in a row
BAND = 0.15  # opacity
DOTS_PER_INCH = 150


def save_picture(lines: Sequence[Line], metric: str, path: Path) -> None:
    """Draw the lines, one panel for each dataset, teacher and student, as the file's suffix says.

    Raises:
        UsageError: matplotlib is not installed, or there are no pictures of this kind.
        FileWriteError: the file cannot be written.
    """
    require_drawable(path)
    save_figure(_figure(lines, metric), path, DOTS_PER_INCH)


def _figure(lines: Sequence[Line], metric: str) -> Figure:
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys(line.panel for line in lines))
    columns = min(len(panels), COLUMNS)
    count = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * count), layout="constrained")
    axes = figure.subplots(count, columns, squeeze=False).flatten()
    for panel, axis in zip(panels, axes, strict=False):
        dataset, teacher, student = panel
        axis.set_title(f"{dataset}: {teacher} → {student}", fontsize="medium")
        axis.set_xlabel("training images")
        axis.set_ylabel(f"{metric.replace('_', ' ')}, per cent")
        _draw(axis, [line for line in lines if line.panel == panel])
    for unused in axes[len(panels) :]:
        unused.set_visible(False)
    return figure


def _draw(axis: Any, lines: Sequence[Line]) -> None:
    """Mean over seeds, and one standard deviation to either side as a band."""
    from matplotlib.ticker import NullLocator

    axis.set_xscale("log")
    for line in lines:
        images = [point.images for point in line.points]
        middle = [100 * point.mean for point in line.points]
        (drawn,) = axis.plot(images, middle, marker="o", label=line.label)
        low, high = (
            [100 * (point.mean + sign * point.std) for point in line.points] for sign in (-1, 1)
        )
        axis.fill_between(images, low, high, color=drawn.get_color(), alpha=BAND, linewidth=0)
    sizes = {point.fraction: point.images for line in lines for point in line.points}
    axis.set_xticks(list(sizes.values()), labels=[f"{size:.0f}" for size in sizes.values()])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.legend()
