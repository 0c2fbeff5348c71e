"""A picture of a plane through three images: one panel a classifier, coloured by class.

Drawn without a screen (Agg), and to the same bytes from the same numbers.
"""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from rdcache.report.classified_planes import ClassifiedPlanes
from rdcache.report.picture_files import require_drawable, save_figure

# Paul Tol's "light" scheme: told apart with every kind of colour vision, pale enough for black
# marks on top. More classes than these are given colours of a map that grows evenly in lightness.
COLOURS = (
    *("#77AADD", "#EE8866", "#EEDD88", "#44BB99", "#FFAABB"),
    *("#99DDFF", "#BBCC33", "#DDDDDD", "#AAAA00"),
)
MARKS, MARKS_AS_TEXT = ("o", "s", "^"), "●■▲"  # of the three images
MOST_COLUMNS = 4
DOTS_PER_INCH = 200
# Everything is placed in inches, so that panels are as large whatever stands around them.
PANEL, GAP, EDGE, LEAST_WIDTH = 2.2, 0.15, 0.1, 3.4
LINE = 0.16  # of text
LETTERS = 15  # of text in an inch of width, at most


def draw_boundaries(planes: ClassifiedPlanes, path: Path, number: int = 0) -> None:
    """Draw one of the planes.

    Args:
        path: ending in one of `picture_files.FORMATS`.
        number: which of the planes.

    Raises:
        UsageError: matplotlib is not installed, or the format is none of these.
        FileWriteError: the file cannot be written.
    """
    require_drawable(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context({"font.size": 8, "svg.hashsalt": "rdcache", "svg.fonttype": "none"}):
        figure = Figure()
        FigureCanvasAgg(figure)
        _draw(figure, planes, number)
        save_figure(figure, path, DOTS_PER_INCH)


def _draw(figure: Any, planes: ClassifiedPlanes, number: int) -> None:
    """Panels row by row, and below them the classes and what the marks are."""
    shown, predicted = planes.planes[number], planes.predicted[number]
    # Only classes that occur take a colour and a place in the legend.
    present = np.unique(np.concatenate([predicted.ravel(), np.array(shown.labels)])).tolist()
    colours = dict(zip(present, _colours(len(present)), strict=True))
    _, extent = shown.plane.grid(predicted.shape[-1])
    left, right, bottom, top = extent
    tall = PANEL * (top - bottom) / (right - left)
    rows = math.ceil(len(planes.panels) / MOST_COLUMNS)
    columns = math.ceil(len(planes.panels) / rows)
    titles = [textwrap.fill(panel.title, int(PANEL * LETTERS)) for panel in planes.panels]
    above = LINE * (1.5 + max(title.count("\n") for title in titles))
    across = columns * PANEL + (columns - 1) * GAP
    width = max(across + 2 * EDGE, LEAST_WIDTH)
    legend = _Legend(planes, number, colours, width)
    height = EDGE + rows * (above + tall) + (rows - 1) * GAP + legend.height
    figure.set_size_inches(width, height)
    for place, (title, classes) in enumerate(zip(titles, predicted, strict=True)):
        row, column = divmod(place, columns)
        x = (width - across) / 2 + column * (PANEL + GAP)
        y = height - EDGE - (row + 1) * (above + tall) - row * GAP
        axes = figure.add_axes((x / width, y / height, PANEL / width, tall / height))
        picture = _as_colours(classes, colours)
        axes.imshow(picture, extent=extent, origin="lower", interpolation="nearest", aspect="auto")
        for mark, corner, label in zip(MARKS, shown.plane.corners, shown.labels, strict=True):
            axes.plot(*corner, mark, markersize=6, mfc=colours[label], mec="black", mew=1.1)
        axes.set_title(title, pad=4)
        axes.set_xticks([])
        axes.set_yticks([])
    legend.draw(figure)


class _Legend:
    """The classes, and below them, in words, which images the marks are.

    Args:
        width: of the picture, in inches.

    Attributes:
        height: in inches.
    """

    def __init__(
        self, planes: ClassifiedPlanes, number: int, colours: dict[int, str], width: float
    ) -> None:
        self.names = {planes.classes[label]: colour for label, colour in colours.items()}
        shown = planes.planes[number]
        marks = ", ".join(
            f"{mark}\u00a0{uid[:8]}\u00a0({planes.classes[label]})"  # not to be broken
            for mark, uid, label in zip(MARKS_AS_TEXT, shown.uids, shown.labels, strict=True)
        )
        text = f"Test images of {planes.dataset}, filled by their true class: {marks}"
        self.text = textwrap.fill(text, int((width - 2 * EDGE) * LETTERS))
        longest = max(map(len, self.names)) + 6  # with its patch
        self.columns = max(1, min(len(self.names), int(width * LETTERS / longest)))
        self.lines = self.text.count("\n") + 1
        rows = math.ceil(len(self.names) / self.columns)
        self.height = LINE * (1.2 * rows + self.lines + 1.2)

    def draw(self, figure: Any) -> None:
        """Draw both along the lower edge."""
        from matplotlib.patches import Patch

        height = figure.get_figheight()
        figure.legend(
            handles=[
                Patch(facecolor=colour, edgecolor="black", linewidth=0.5, label=name)
                for name, colour in self.names.items()
            ],
            loc="lower center",
            bbox_to_anchor=(0.5, (LINE * (self.lines + 0.6)) / height),
            ncols=self.columns,
            frameon=False,
            borderaxespad=0,
            borderpad=0,
        )
        figure.text(0.5, LINE * 0.5 / height, self.text, ha="center", va="bottom", fontsize=7)


def _colours(count: int) -> list[str]:
    if count <= len(COLOURS):
        return list(COLOURS[:count])
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return [to_hex(colour) for colour in colormaps["cividis"](np.linspace(0, 1, count))]


def _as_colours(classes: np.ndarray, colours: dict[int, str]) -> np.ndarray:
    """Class numbers (R, R) as uint8 (R, R, 3)."""
    picture = np.zeros((*classes.shape, 3), np.uint8)
    for label, colour in colours.items():
        picture[classes == label] = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    return picture
