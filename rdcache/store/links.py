"""Files of a store are files below its folder: a link that leads elsewhere is not followed.

A store may come from anyone, as an archive or on a shared disk. The folder itself may be reached by
a link, as people link their roots.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rdcache.errors import UnsafeFileError


def inside(folder: Path, name: str) -> Path:
    """The path of an object of a store, which need not exist.

    Args:
        name: relative to the folder, with `/`.

    Raises:
        UnsafeFileError: on the way lies a link that leads out of the folder, or at its end
            something that is neither file nor folder.
    """
    path = str(folder)
    mode = 0
    for part in name.split("/"):
        path = f"{path}/{part}"
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            break  # what is not there leads nowhere
        if stat.S_ISLNK(mode):
            mode = _mode_below(folder, path)
    else:
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UnsafeFileError("something in this store is no file.", store=folder, what=name)
    return folder / name


def _mode_below(folder: Path, link: str) -> int:
    """Of what a link leads to, within the folder."""
    real = os.path.realpath(link)
    if os.path.commonpath([real, os.path.realpath(folder)]) != os.path.realpath(folder):
        raise UnsafeFileError(
            "a link in this store leads out of it, and is not followed.",
            store=folder,
            link=os.path.relpath(link, folder),
            next="put the file itself in its place, or use a copy of the store that has it",
        )
    try:
        return Path(real).stat().st_mode
    except OSError:
        return stat.S_IFREG  # it leads nowhere, like a file that is missing
