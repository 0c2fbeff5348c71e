"""`table:FILE`: a CSV or Parquet table with the columns path, label and, if known, split, group."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rdcache.data.listing import Entry, Listing
from rdcache.errors import DatasetError

LAYOUT = "columns path (relative to the table), label, and optionally split and group"
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
    table = _read(file)
    for column in ("path", "label"):
        if column not in table.columns:
            raise DatasetError(
                f"the table has no column {column!r}.",
                file=file,
                has=", ".join(map(str, table.columns)),
                expected=LAYOUT,
            )
    classes = _classes(table["label"])
    numbers = {name: label for label, name in enumerate(classes)}
    entries: list[Entry] = []
    lines: list[int] = []
    for row, values in enumerate(table.to_dict("records")):
        line = row + 2  # the first line holds the column names
        if not any(_text(cell) for cell in values.values()):
            continue
        name = _text(values["path"])
        label = _text(values["label"])
        if not name or not label:
            raise DatasetError("a row of the table lacks its path or label.", file=file, line=line)
        lines.append(line)
        entries.append(
            Entry(
                path=file.parent / name,
                name=name,
                label=numbers[label],
                split=_split(_text(values.get("split")), file, line),
                group=_text(values.get("group")) or None,
            )
        )
    _require_known_labels(entries, lines, classes, file)
    return Listing(tuple(entries), classes)


def _require_known_labels(
    entries: Sequence[Entry], lines: Sequence[int], classes: Sequence[str], file: Path
) -> None:
    """Refuse labels of val and test that no training row has: nobody could learn them."""
    training = {entry.label for entry in entries if entry.split in ("train", None)}
    for entry, line in zip(entries, lines, strict=True):
        if entry.label not in training:
            raise DatasetError(
                f"the label {classes[entry.label]!r} is outside the classes of the training rows.",
                file=file,
                line=line,
                classes=", ".join(classes[label] for label in sorted(training)) or "none",
            )


def _read(file: Path) -> pd.DataFrame:
    try:
        if file.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(file)
        separator = "\t" if file.suffix.lower() == ".tsv" else ","
        # Blank lines are read, and passed over later, so that errors name the file's own lines.
        return pd.read_csv(
            file, dtype=str, sep=separator, keep_default_na=False, skip_blank_lines=False
        )
    except ImportError:
        raise DatasetError(
            "reading Parquet needs pyarrow.", file=file, next="pip install 'rdcache[parquet]'"
        ) from None
    except (OSError, ValueError, pd.errors.ParserError) as error:
        raise DatasetError("the table cannot be read.", file=file, why=error) from None


def _classes(labels: pd.Series) -> tuple[str, ...]:
    found = {_text(label) for label in labels} - {""}
    if all(re.fullmatch(r"-?\d+", name) for name in found):
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
