"""A copy, for a process that may be killed."""

from __future__ import annotations

from rdcache.store import as_location
from rdcache.store.transfer import copy_store


def copy(source: str, root: str) -> None:
    """Copy, and print the status."""
    print(copy_store(as_location(source), as_location(root)).status)
