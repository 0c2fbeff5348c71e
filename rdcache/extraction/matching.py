"""Which image each row of features is of."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from rdcache.data import ImageDataset
from rdcache.data.volume_files import volume_stem
from rdcache.errors import DatasetError

SHOWN = 3  # names in a message
NO_ROW, AMBIGUOUS = -1, -2


def match_rows(keys: Sequence[str], dataset: ImageDataset) -> tuple[np.ndarray, list[str]]:
    """Find each sample's row.

    A key is a uid, or the end of a path: as much of it as tells the images apart, with or without
    the file's suffix.

    Returns:
        int64 (samples,): row numbers, -1 for none; and the keys that match no sample.

    Raises:
        DatasetError: a key that fits several images, or an image with several rows.
    """
    numbers = _samples_by_name(dataset)
    rows = np.full(len(dataset), NO_ROW, np.int64)
    unmatched: list[str] = []
    for row, key in enumerate(keys):
        parts = [part for part in key.replace("\\", "/").split("/") if part not in ("", ".")]
        number = numbers.get("/".join(parts), NO_ROW)
        if number == AMBIGUOUS:
            raise DatasetError(
                "a key fits several images.",
                key=key,
                next="keys with more of the path, or uids (of an exported store)",
            )
        if number == NO_ROW:
            unmatched.append(key)
        elif rows[number] != NO_ROW:
            raise DatasetError("two rows are of one image.", keys=f"{keys[rows[number]]}, {key}")
        else:
            rows[number] = row
    return rows, unmatched


def _samples_by_name(dataset: ImageDataset) -> dict[str, int]:
    """Every name of every sample: its uid, and each end of its path with and without suffix."""
    numbers = {sample.uid: number for number, sample in enumerate(dataset.samples)}
    for number, sample in enumerate(dataset.samples):
        path = PurePosixPath(sample.path.as_posix())
        bare = path.with_name(volume_stem(path))  # `case.nii.gz` has a suffix of two parts
        for parts in {path.parts, path.with_suffix("").parts, bare.parts}:
            below = [part for part in parts if part != "/"]
            for start in range(len(below)):
                name = "/".join(below[start:])
                numbers[name] = number if numbers.get(name, number) == number else AMBIGUOUS
    return numbers


def require_all(
    path: Path, dataset: ImageDataset, missing: Sequence[str], unmatched: Sequence[str]
) -> None:
    """Refuse features that are of fewer or of other images."""
    if missing or unmatched:
        facts = {
            "images_without_row": some(missing),
            "rows_without_image": some(unmatched),
        }
        raise DatasetError(
            f"these features are not of the images of {dataset.name}.",
            file=path,
            **{name: text for name, text in facts.items() if text},
            next="another --keys or --dataset, or --allow-missing to leave these out",
        )


def some(names: Sequence[str]) -> str:
    """How many there are, and the first few of them; nothing if there are none."""
    more = ["…"] if len(names) > SHOWN else []
    return f"{len(names)} ({', '.join([*names[:SHOWN], *more])})" if names else ""
