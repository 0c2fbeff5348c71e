"""Features that were computed elsewhere: one HDF5 file with a row for each image, or a folder with
one HDF5 file for each, whose rows are the patches of a slide.

Both give rows by number and the keys that say which images these are; `importing.py` matches them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rdcache.errors import FeatureFileError
from rdcache.models.taps import KIND_BY_DIMENSIONS, tap_specs
from rdcache.store import TapSpec
from rdcache.store.hdf5 import (
    feature_dtype,
    find_dataset,
    has_link,
    open_hdf5,
    read_rows,
    read_texts,
    require_held,
)

BAG_SUFFIXES = (".h5", ".hdf5")
FEATURES, COORDINATES = "features", "coords"
POOLED, TOKENS = "pooled", "tokens"


class FeatureSource(ABC):
    """Rows of features.

    Attributes:
        keys: which image each row is of.
        taps: in the dtype in which they are stored.
        sha256: of all files.
        origin: where in the files the taps are from, as JSON values.
    """

    keys: Sequence[str]
    taps: tuple[TapSpec, ...]
    sha256: str
    origin: Mapping[str, object]

    @abstractmethod
    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Tap name → (len(rows), *tap) in the stored dtype; row numbers must ascend."""


class FeatureFile(FeatureSource):
    """One file with a dataset (n, *tap) for each tap and the keys of the n rows.

    Args:
        keys: name of the HDF5 dataset of keys.
        datasets: tap name → name of its HDF5 dataset.

    Raises:
        UnknownNameError, UnsafeFileError, FeatureFileError: a dataset that is not there, lies
            elsewhere, or does not hold one tensor for each key.
    """

    def __init__(self, file: h5py.File, keys: str, datasets: Mapping[str, str]) -> None:
        self.keys = read_texts(find_dataset(file, keys))
        self._datasets = {tap: find_dataset(file, name) for tap, name in datasets.items()}
        for dataset in self._datasets.values():
            self._require_rows(dataset)
        shapes = {tap: tuple(it.shape[1:]) for tap, it in self._datasets.items()}
        self.taps = tuple(
            replace(spec, dtype=feature_dtype(self._datasets[tap]))
            for tap, spec in tap_specs(shapes).items()
        )
        self.sha256 = _sha256(Path(file.filename))
        self.origin = {"keys": keys, "datasets": dict(datasets)}

    def _require_rows(self, dataset: h5py.Dataset) -> None:
        if dataset.ndim - 1 not in KIND_BY_DIMENSIONS or dataset.shape[0] != len(self.keys):
            raise FeatureFileError(
                "a dataset of features has one vector, token matrix or map for each key.",
                file=dataset.file.filename,
                dataset=dataset.name,
                shape=dataset.shape,
                keys=len(self.keys),
            )
        require_held(dataset)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Read runs of neighbouring rows at a time."""
        pieces = np.split(np.arange(len(rows)), np.flatnonzero(np.diff(rows) != 1) + 1)
        tensors = {}
        for tap in self.taps:
            values = tensors[tap.name] = np.empty((len(rows), *tap.shape), tap.stored_dtype)
            for piece in filter(len, pieces):
                first, last = rows[piece[0]], rows[piece[-1]]
                block = read_rows(self._datasets[tap.name], np.s_[first : last + 1])
                values[piece[0] : piece[-1] + 1] = _cast(block, tap.stored_dtype)
        return tensors


class BagFolder(FeatureSource):
    """A folder with one file a slide: `features` (n, d) or (1, n, d), and perhaps `coords` (n, 2).

    Gives the mean over the patches as a vector, and if asked for, a number of patches as tokens:
    evenly spread over the bag where it has more, repeated evenly where it has fewer, so that the
    mean over tokens stays about what it was.

    Args:
        tokens: how many; 0 for none.

    Raises:
        FeatureFileError: there is no such file in the folder, or one that differs from the others.
    """

    def __init__(self, folder: Path, tokens: int) -> None:
        found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in BAG_SUFFIXES)
        self._files = [path for path in found if not path.name.startswith(".")]
        if not self._files:
            raise FeatureFileError("there is no HDF5 file in this folder.", folder=folder)
        self.keys = [path.relative_to(folder).with_suffix("").as_posix() for path in self._files]
        kinds = [_kind_of_bag(path) for path in self._files]
        width, dtype = kinds[0]
        for path, kind in zip(self._files, kinds, strict=True):
            if kind != kinds[0]:
                raise FeatureFileError(
                    "the features of two slides differ in width or number format.",
                    file=path,
                    holds=f"{kind[0]} numbers a patch, {kind[1]}",
                    others=f"{width} numbers a patch, {dtype}",
                )
        self.taps = (TapSpec(POOLED, "vector", (width,), "float32"),)
        if tokens:
            self.taps += (TapSpec(TOKENS, "tokens", (tokens, width), dtype),)
        lines = [
            f"{key} {_sha256(path)}\n" for key, path in zip(self.keys, self._files, strict=True)
        ]
        self.sha256 = hashlib.sha256("".join(lines).encode()).hexdigest()
        self.origin = {"bags": FEATURES, "tokens": tokens}

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Read one bag after the other."""
        tensors = {
            tap.name: np.full((len(rows), *tap.shape), np.nan, tap.stored_dtype)
            for tap in self.taps
        }
        for number, row in enumerate(rows):
            with open_hdf5(self._files[row]) as file:
                bag = read_rows(_bag(file))
            bag = bag[0] if bag.ndim == 3 else bag
            if not len(bag):
                continue
            tensors[POOLED][number] = bag.mean(axis=0, dtype=np.float64)
            if TOKENS in tensors:
                count = tensors[TOKENS].shape[1]
                chosen = np.linspace(0, len(bag) - 1, count).round().astype(int)
                tensors[TOKENS][number] = _cast(bag[chosen], tensors[TOKENS].dtype)
        return tensors


def _kind_of_bag(path: Path) -> tuple[int, str]:
    """Width and stored dtype of one bag."""
    with open_hdf5(path) as file:
        bag = _bag(file)
        return bag.shape[-1], feature_dtype(bag)


def _bag(file: h5py.File) -> h5py.Dataset:
    """The features of a slide, checked but not read."""
    bag = find_dataset(file, FEATURES)
    patches = bag.shape[-2] if bag.ndim in (2, 3) else None
    if has_link(file, COORDINATES):
        coordinates = find_dataset(file, COORDINATES).shape
        fitting = patches in coordinates[:-1] and coordinates[-1] == 2
    else:
        coordinates, fitting = "none", True
    whole = bag.ndim == 2 or (bag.ndim == 3 and bag.shape[0] == 1)
    if not (whole and fitting) or bag.dtype == np.uint16:
        raise FeatureFileError(
            "this file is no bag of patches.",
            file=file.filename,
            expected="features (n, d) or (1, n, d) and coords (n, 2)",
            holds=f"features {bag.shape} {bag.dtype}, coords {coordinates}",
        )
    require_held(bag)
    return bag


def _cast(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    """As stored; what float32 cannot hold of float64 becomes Inf, and is left out as such."""
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
