"""What a run's student made of each test image, by their uids: right or wrong, or how right."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from rdcache.errors import RunNotFoundError


def values_by_uid(path: Path) -> Mapping[str, float]:
    """Uid of each test image → what a mean over images is of: whether the student's most probable
    class is its label; the Dice of its mask; of several labels the share that is right.

    A file is read once, and again when it has changed.

    Raises:
        RunNotFoundError: the file is missing or damaged.
    """
    try:
        state = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    return _read(path, state.st_mtime_ns, state.st_size)


def same_images(several: Sequence[Mapping[int, Path]]) -> bool:
    """Whether all predictions are of the same images; also where some have none to compare."""
    if not all(several):
        return True
    tables = [values_by_uid(path) for each in several for path in each.values()]
    return all(table.keys() == tables[0].keys() for table in tables)


@lru_cache(maxsize=1024)
def _read(path: Path, changed: int, size: int) -> Mapping[str, float]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {row["uid"]: _value(row) for row in csv.DictReader(file)}
    except OSError as error:
        raise _unreadable(path, error) from None
    except (KeyError, ValueError, csv.Error):
        raise RunNotFoundError(
            "the predictions of this run are damaged.",
            file=path,
            next="the same `rdcache distill` with --overwrite",
        ) from None


def _value(row: Mapping[str, str]) -> float:
    """What a line of predictions is worth; a bool where it is of one class.

    Raises:
        KeyError, ValueError: it says nothing.
    """
    if "dice" in row:
        return float(row["dice"])
    if "predicted" in row:
        return row["label"] == row["predicted"]
    names = [name.removeprefix("p_") for name in row if name.startswith("p_")]
    if not names:
        raise KeyError("p_")
    right = [(float(row[f"p_{it}"]) >= 0.5) == (row[f"label_{it}"] == "1") for it in names]
    return sum(right) / len(right)


def _unreadable(path: Path, error: OSError) -> RunNotFoundError:
    return RunNotFoundError(
        "the predictions of this run cannot be read.", file=path, why=error.strerror
    )


def in_step(
    several: Sequence[Mapping[int, Path]], without: frozenset[str] = frozenset()
) -> list[dict[int, np.ndarray]] | None:
    """Values of several methods on the same images in the same order.

    Args:
        several: for each method, seed → predictions.
        without: uids of images to leave out.

    Returns:
        For each method, seed → bool (n,), or float64 (n,) where images are worth more or less; None
        where they were not tested on the same images.
    """
    read = [{seed: values_by_uid(path) for seed, path in each.items()} for each in several]
    tables = [table for each in read for table in each.values()]
    if not tables or any(table.keys() != tables[0].keys() for table in tables):
        return None
    uids = sorted(tables[0].keys() - without)
    return [
        {seed: np.array([table[uid] for uid in uids]) for seed, table in each.items()}
        for each in read
    ]
