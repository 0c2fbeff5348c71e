"""The catalogue of datasets: one adapter a dataset, entered by a decorator."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rdcache.data.listing import Listing
from rdcache.data.samples import Symmetry, Task
from rdcache.data.splits import FEW
from rdcache.errors import UsageError


@dataclass(frozen=True)
class DatasetCard:
    """One entry of the catalogue.

    Attributes:
        classes: class names in label order; empty where the user's files decide.
        split: what is official, in words.
        source: where a user gets it.
        folders: names under the data folder that it is looked for, in this order; of a set that is
            one file, names of files.
        layout: what the folder must hold, shown when it does not.
        list_files: the adapter: finds entries in the folder; an empty listing if it finds none.
        task: what its labels ask for; in words where the user's files decide.
        dimensions: 2, or 3 for volumes.
        few: an official validation split of fewer samples gets some of train in addition.
        variant_of: the set of which this is another size; such variants are not listed.
        present: whether the folder is there, filled in by `list_datasets`.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    split: str
    symmetry: Symmetry
    licence: str
    source: str
    folders: tuple[str, ...]
    layout: str
    list_files: Callable[[Path], Listing]
    task: str = "multiclass"
    dimensions: int = 2
    few: int = FEW
    variant_of: str = ""
    present: bool = False


CATALOGUE: dict[str, DatasetCard] = {}


def register(
    name: str,
    *,
    title: str,
    classes: tuple[str, ...],
    split: str,
    symmetry: Symmetry,
    licence: str,
    source: str,
    folders: tuple[str, ...],
    layout: str,
    task: Task = "multiclass",
    dimensions: int = 2,
    few: int = FEW,
    variant_of: str = "",
) -> Callable[[Callable[[Path], Listing]], Callable[[Path], Listing]]:
    """Enter an adapter in the catalogue; it is called with the dataset's folder."""

    def enter(list_files: Callable[[Path], Listing]) -> Callable[[Path], Listing]:
        CATALOGUE[name] = DatasetCard(
            name,
            title,
            classes,
            split,
            symmetry,
            licence,
            source,
            folders,
            layout,
            list_files,
            task,
            dimensions,
            few,
            variant_of,
        )
        return list_files

    return enter


def default_data_dir(explicit: Path | None = None) -> Path:
    """Where datasets and weights are looked for: as given, else RDCACHE_DATA, else `data`."""
    if explicit is not None:
        return expanded(explicit)
    return expanded(os.environ.get("RDCACHE_DATA") or "data")


def expanded(path: str | Path) -> Path:
    """A path with its `~` resolved, which shells leave alone in `--data-dir=~/x` or `folder:~/x`.

    Raises:
        UsageError: `~name` of a user whom this machine does not know.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError("this home folder is not known here.", given=path) from None
