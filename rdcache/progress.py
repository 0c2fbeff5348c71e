"""How long work reports where it stands, without knowing who listens."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called with the units done and in all; `note` names what is under way, such as a stage."""

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Take note that `done` of `total` units are done."""


def ignore(done: int, total: int, note: str = "") -> None:
    """Report to nobody."""
