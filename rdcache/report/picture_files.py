"""Files of pictures: which can be drawn here, and how one is written whole or not at all.

matplotlib draws them, without a screen; it is an extra, so it is asked for before any long work.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from rdcache.errors import UsageError
from rdcache.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = (".png", ".pdf", ".svg")
# Neither the time nor the version of the program is written into a file.
UNWRITTEN = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}


def require_drawable(path: Path) -> None:
    """Refuse, before any long work, a picture that could not be drawn.

    Raises:
        UsageError: matplotlib is not installed, or the format is none of `FORMATS`.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"a picture is one of {', '.join(FORMATS)}.", given=path.name)
    try:
        import_module("matplotlib")
    except ModuleNotFoundError as error:
        raise UsageError(
            "pictures need the package matplotlib.", next="pip install 'rdcache[plots]'"
        ) from error


def save_figure(figure: Figure, path: Path, dots_per_inch: int) -> None:
    """Write a picture as its suffix says, whole or not at all.

    Args:
        path: ending in one of `FORMATS`.

    Raises:
        FileWriteError: it cannot be written.
    """
    kind = path.suffix.lower()[1:]
    write_whole(
        path,
        lambda partial: figure.savefig(
            partial, format=kind, dpi=dots_per_inch, metadata=UNWRITTEN[kind]
        ),
    )
