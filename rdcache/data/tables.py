"""`table:FILE`: a CSV or Parquet table with the columns path, label and, if known, split, group;
with labels for images of several findings, and with mask for images that are to be segmented.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from rdcache.data.leaks import Label
from rdcache.data.listing import Entry, Listing
from rdcache.data.masks import declared_classes, masks_of
from rdcache.errors import DatasetError

LAYOUT = (
    "columns path (relative to the table), label (or labels: several, separated by ;, or mask: "
    "files relative to the table), and optionally split and group"
)
SEPARATOR = ";"
Row = dict[Any, Any]
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


def list_table(file: Path) -> Listing:
    """Classes are the label column's values, sorted; numbers as numbers. A column `labels` names
    any number of findings, a column `mask` the files of a mask.

    Raises:
        DatasetError: unreadable, a column is missing, or a cell makes no sense; with its line.
    """
    columns, rows = _read(file)
    kind = _kind(columns, file)
    filled = [(line, row) for line, row in rows if any(_text(cell) for cell in row.values())]
    if kind == "labels":
        return _findings(file, filled)
    classes = _classes(values.get("label") for _, values in filled)
    numbers = {name: label for label, name in enumerate(classes)}
    entries: list[Entry] = []
    for line, values in filled:
        name, label = _text(values["path"]), _text(values.get("label"))
        if not name or (kind == "label" and not label):
            raise DatasetError("a row of the table lacks its path or label.", file=file, line=line)
        masks = _listed(values.get("mask"))
        if kind == "mask" and not masks:
            raise DatasetError("a row of the table lacks its mask.", file=file, line=line)
        entry = _entry(file, line, values, numbers.get(label, 0))
        entries.append(replace(entry, masks=tuple(file.parent / each for each in masks)))
    if kind == "label":
        return Listing(tuple(entries), classes)
    segmented = declared_classes(file.parent)
    return Listing(
        tuple(entries), segmented, task="segmentation", read_mask=masks_of(len(segmented))
    )


def _kind(columns: list[str], file: Path) -> str:
    """The column that says what is to be learnt: `mask`, else `label`, else `labels`."""
    kind = next((name for name in ("mask", "label", "labels") if name in columns), "label")
    for column in ("path", kind):
        if column not in columns:
            raise DatasetError(
                f"the table has no column {column!r}.",
                file=file,
                has=", ".join(columns),
                expected=LAYOUT,
            )
    return kind


def _findings(file: Path, rows: list[tuple[int, Row]]) -> Listing:
    """Images of any number of findings each; a cell without any is a finding-free image."""
    classes = _classes(name for _, values in rows for name in _listed(values["labels"]))
    entries: list[Entry] = []
    for line, values in rows:
        own = set(_listed(values["labels"]))
        if not _text(values["path"]):
            raise DatasetError("a row of the table lacks its path.", file=file, line=line)
        label = tuple(int(name in own) for name in classes)
        entries.append(_entry(file, line, values, label))
    return Listing(tuple(entries), classes, task="multilabel")


def _entry(file: Path, line: int, values: Row, label: Label) -> Entry:
    name = _text(values["path"])
    return Entry(
        path=file.parent / name,
        name=name,
        label=label,
        split=_split(_text(values.get("split")), file, line),
        group=_text(values.get("group")) or None,
    )


def _listed(cell: object) -> list[str]:
    """The parts of a cell that holds several."""
    return [part.strip() for part in _text(cell).split(SEPARATOR) if part.strip()]


def _read(file: Path) -> tuple[list[str], list[tuple[int, Row]]]:
    """Column names, and each row with its line."""
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            table = pd.read_parquet(file)
            return list(map(str, table.columns)), list(enumerate(table.to_dict("records"), start=1))
        return _read_text(file, "\t" if file.suffix.lower() == ".tsv" else ",")
    except ImportError:
        raise DatasetError(
            "reading Parquet needs pyarrow.", file=file, next="pip install 'rdcache[parquet]'"
        ) from None
    except DatasetError:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise DatasetError("the table cannot be read.", file=file, why=error) from None


def _read_text(file: Path, separator: str) -> tuple[list[str], list[tuple[int, Row]]]:
    # Not pandas, which takes the first column for an index where rows are longer than the header.
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.DictReader(stream, delimiter=separator, strict=True)
        rows: list[tuple[int, Row]] = []
        for row in reader:
            if any(row.pop(None, [])):  # cells beyond the last column; a trailing comma is none
                raise DatasetError(
                    "a row of the table has more cells than there are columns.",
                    file=file,
                    line=reader.line_num,
                    columns=", ".join(reader.fieldnames or ()),
                )
            rows.append((reader.line_num, row))
    if not reader.fieldnames:
        raise ValueError("it is empty")
    return list(reader.fieldnames), rows


def _classes(labels: Iterable[object]) -> tuple[str, ...]:
    found = {_text(label) for label in labels} - {""}
    if all(re.fullmatch(r"-?\d{1,18}", name) for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def _text(cell: object) -> str:
    if cell is None or (isinstance(cell, float) and cell != cell):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _split(word: str, file: Path, line: int) -> str | None:
    if not word:
        return None
    if word.lower() not in SPLIT_WORDS:
        raise DatasetError(
            f"{word!r} is no split.", file=file, line=line, expected="train, val or test"
        )
    return SPLIT_WORDS[word.lower()]
