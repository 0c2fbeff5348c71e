"""`table:FILE`: a CSV or Parquet table with the columns path, label and, if known, split, group."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from rdcache.data.listing import Entry, Listing
from rdcache.errors import DatasetError

LAYOUT = "columns path (relative to the table), label, and optionally split and group"
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
    """Classes are the label column's values, sorted; numbers as numbers.

    Raises:
        DatasetError: unreadable, a column is missing, or a cell makes no sense; with its line.
    """
    columns, rows = _read(file)
    for column in ("path", "label"):
        if column not in columns:
            raise DatasetError(
                f"the table has no column {column!r}.",
                file=file,
                has=", ".join(columns),
                expected=LAYOUT,
            )
    classes = _classes(values["label"] for _, values in rows)
    numbers = {name: label for label, name in enumerate(classes)}
    entries: list[Entry] = []
    for line, values in rows:
        if not any(_text(cell) for cell in values.values()):
            continue
        name = _text(values["path"])
        label = _text(values["label"])
        if not name or not label:
            raise DatasetError("a row of the table lacks its path or label.", file=file, line=line)
        entries.append(
            Entry(
                path=file.parent / name,
                name=name,
                label=numbers[label],
                split=_split(_text(values.get("split")), file, line),
                group=_text(values.get("group")) or None,
            )
        )
    return Listing(tuple(entries), classes)


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
