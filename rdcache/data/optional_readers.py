"""Packages that only some datasets need, imported when they are."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rdcache.errors import DatasetError


def needed(package: str, what: str) -> Any:
    """The package's module.

    Args:
        what: is read with it, for the error.

    Raises:
        DatasetError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError:
        raise DatasetError(
            f"reading {what} needs {package}.", next="pip install 'rdcache[volumes]'"
        ) from None
