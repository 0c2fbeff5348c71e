"""A picture of a plane through three images: one panel a classifier, coloured by class.

Drawn without a screen (Agg), and to the same bytes from the same numbers.
"""

from __future__ import annotations

import math
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from rdcache.errors import UsageError
from rdcache.files import write_whole
from rdcache.report.classified_planes import ClassifiedPlanes

FORMATS = (".png", ".pdf", ".svg")
# Paul Tol's "light" scheme: told apart with every kind of colour vision, pale enough for black
# marks on top. More classes than these are given colours of a map that grows evenly in lightness.
COLOURS = (
    *("#77AADD", "#EE8866", "#EEDD88", "#44BB99", "#FFAABB"),
    *("#99DDFF", "#BBCC33", "#DDDDDD", "#AAAA00"),
)
MARKS = ("o", "s", "^")  # one for each of the three images
MOST_COLUMNS = 4
PANEL_INCHES = 2.3
DOTS_PER_INCH = 200


def draw_boundaries(planes: ClassifiedPlanes, path: Path, number: int = 0) -> None:
    """Draw one of the planes.

    Args:
        path: ending in one of `FORMATS`.
        number: which of the planes.

    Raises:
        UsageError: matplotlib is not installed, or the format is none of these.
        FileWriteError: the file cannot be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"a picture is one of {', '.join(FORMATS)}.", given=path.name)
    require_matplotlib()
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style = {"font.size": 8, "svg.hashsalt": "rdcache", "svg.fonttype": "none"}
    with rc_context(style):
        figure = Figure(layout="constrained")
        FigureCanvasAgg(figure)
        _draw(figure, planes, number)
        kind = path.suffix.lower()[1:]
        # Neither the time nor the version of the program is written into the file.
        written = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
        write_whole(
            path,
            lambda partial: figure.savefig(
                partial, format=kind, dpi=DOTS_PER_INCH, metadata=written[kind]
            ),
        )


def require_matplotlib() -> None:
    """Refuse to begin where there is nothing to draw with.

    Raises:
        UsageError: matplotlib is not installed.
    """
    try:
        import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise UsageError(
            "pictures need the package matplotlib.", next="pip install 'rdcache[plots]'"
        ) from error


def _draw(figure: Any, planes: ClassifiedPlanes, number: int) -> None:
    shown = planes.planes[number]
    predicted = planes.predicted[number]
    # Only classes that occur take a colour and a line of the legend.
    present = np.unique(np.concatenate([predicted.ravel(), np.array(shown.labels)]))
    colours = dict(zip(present.tolist(), _colours(len(present)), strict=True))
    columns = min(len(planes.panels), MOST_COLUMNS)
    rows = math.ceil(len(planes.panels) / columns)
    figure.set_size_inches(columns * PANEL_INCHES, rows * (PANEL_INCHES + 0.25) + 0.5)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    _, extent = shown.plane.grid(predicted.shape[-1])
    for axis, panel, classes in zip(axes, planes.panels, predicted, strict=False):
        axis.imshow(
            _as_colours(classes, colours), extent=extent, origin="lower", interpolation="nearest"
        )
        for mark, corner, label in zip(MARKS, shown.plane.corners, shown.labels, strict=True):
            axis.plot(
                *corner,
                mark,
                markersize=6,
                markerfacecolor=colours[label],
                markeredgecolor="black",
                markeredgewidth=1.1,
            )
        axis.set_title(panel.title, wrap=True)
        axis.set_xticks([])
        axis.set_yticks([])
    for axis in axes[len(planes.panels) :]:
        axis.set_axis_off()
    _add_legend(figure, planes, number, colours)


def _add_legend(
    figure: Any, planes: ClassifiedPlanes, number: int, colours: dict[int, str]
) -> None:
    """Below the panels: the classes, then the three images with their true class."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    areas = [
        Patch(facecolor=colour, edgecolor="black", linewidth=0.5, label=planes.classes[label])
        for label, colour in colours.items()
    ]
    images = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=mark,
            markerfacecolor=colours[label],
            markeredgecolor="black",
            label=f"image {uid[:8]}: {planes.classes[label]}",
        )
        for mark, uid, label in zip(
            MARKS, planes.planes[number].uids, planes.planes[number].labels, strict=True
        )
    ]
    figure.legend(
        handles=[*areas, *images],
        loc="outside lower center",
        ncols=min(len(planes.panels) + 1, 4),
        frameon=False,
    )


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
