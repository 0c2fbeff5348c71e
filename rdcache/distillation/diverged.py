"""A training that came to no student: what is kept of it, so that a grid need not repeat it.

Training is exact (on a CPU), so a run that diverged would diverge again. Its folder says so in
`diverged.json`; whoever goes on with what is there (`resume`) takes that for its outcome.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rdcache.errors import TrainingError
from rdcache.files import write_text

DIVERGED = "diverged.json"


@dataclass(frozen=True)
class Diverged:
    """One student that was not trained to its end, because its loss or its output was not finite.

    Attributes:
        path: the folder where its run would have been.
        student, method: what was trained, and how.
        seed: with which seed.
        error: how it diverged.
    """

    path: Path
    student: str
    method: str
    seed: int
    error: TrainingError


def record_divergence(folder: Path, error: TrainingError, of: Mapping[str, Any]) -> None:
    """Note in a run's folder that it has diverged.

    Args:
        of: what a result would have said of the dataset, the teacher and the views.
    """
    content = {"summary": error.summary, "facts": error.facts, "of": of}
    write_text(folder / DIVERGED, json.dumps(content, indent=1))


def in_one(diverged: Sequence[tuple[str, TrainingError]], finished: int) -> TrainingError:
    """What to say when some of several runs have diverged: all of them, and how the first did.

    Args:
        diverged: each in words, and how it diverged.
        finished: how many others are finished.
    """
    names, first = "; ".join(name for name, _ in diverged), diverged[0][1]
    others = {"others": f"{finished} finished"} if finished else {}
    return TrainingError(f"training diverged: {names}.", why=first.summary, **first.facts, **others)


def recorded_divergence(folder: Path) -> TrainingError | None:
    """How a run diverged earlier; None where nothing legible says that it did."""
    try:
        content = json.loads((folder / DIVERGED).read_text(encoding="utf-8"))
        facts = {str(name): str(value) for name, value in content["facts"].items()}
        facts["record"] = f"{folder / DIVERGED} (--overwrite trains again)"
        return TrainingError(str(content["summary"]), **facts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
