"""Opening HDF5 files of others without trusting them.

Links and data that lie in other files are refused, as is everything that is no plain array of
numbers or text; nothing is allocated that the file cannot hold.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rdcache.errors import FeatureFileError, RdcacheError, UnknownNameError, UnsafeFileError

DTYPE_ATTRIBUTE = (
    "rdcache_dtype"  # the attribute that tells bfloat16 from the uint16 it is stored as
)
STORED_DTYPES = {"float16": "float16", "float32": "float32", "float64": "float32"}
MOST_COMPRESSION = 1100  # deflate, the strongest filter of HDF5 itself, shrinks to 1/1032 at best
CHUNK_CACHE = 64 * 2**20  # bytes a dataset: rows come in large chunks, in ascending order


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading.

    Raises:
        FeatureFileError: there is none, it is no HDF5 file, or damaged.
    """
    try:
        file = h5py.File(path, "r", locking="best-effort", rdcc_nbytes=CHUNK_CACHE)
    except (OSError, RuntimeError) as error:
        foreign = path.is_file() and not h5py.is_hdf5(path)
        if isinstance(error, PermissionError | FileNotFoundError) or not foreign:
            raise FeatureFileError(
                "this file cannot be read.", file=path, why=getattr(error, "strerror", 0) or error
            ) from None
        raise FeatureFileError("this is no HDF5 file.", file=path) from None
    with file:
        yield file


def find_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """One dataset of a file, all of whose bytes lie in this file.

    Raises:
        UnknownNameError: there is none of this name.
        UnsafeFileError: a link, or data in another file.
        FeatureFileError: it is of a type that is no number and no text.
    """
    with _reading(file, name):
        found = _walk(file, [part for part in name.split("/") if part])
        if not isinstance(found, h5py.Dataset) or found.shape is None:
            known = dataset_names(file)
            raise UnknownNameError.of(f"dataset in {Path(file.filename).name}", name, known)
        if found.is_virtual or found.external:
            raise UnsafeFileError(
                "the data of this dataset lie in other files.", file=file.filename, dataset=name
            )
        found.dtype  # noqa: B018  (fails here, not later, where NumPy has no such type)
        return found


def _walk(file: h5py.File, parts: list[str]) -> Any:
    """What lies at the end of a path; None where nothing does."""
    found: Any = file
    for part in parts:
        if not has_link(found, part):
            return None
        # Not h5py's own `get`: it looks at what a link leads to, in another file too.
        if found.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
            raise UnsafeFileError(
                "links are not followed.", file=file.filename, link="/".join(parts)
            )
        found = found[part]
    return found


def has_link(place: Any, name: str) -> bool:
    """Whether a group has an entry of this name, wherever that leads to."""
    if not isinstance(place, h5py.Group) or name in (".", ".."):
        return False
    return bool(place.id.links.exists(name.encode()))


@contextmanager
def _reading(file: h5py.File, name: str) -> Iterator[None]:
    """Turn whatever HDF5 says of damaged bytes into one error of ours."""
    try:
        yield
    except RdcacheError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise FeatureFileError(
            "a dataset of this file is damaged, or packed by a filter that is not installed.",
            file=file.filename,
            dataset=name,
            why=error,
        ) from None


def require_held(dataset: h5py.Dataset, nbytes: int | None = None) -> None:
    """Refuse a dataset that would make us allocate more than the file can hold.

    Args:
        nbytes: how much of it will be read; all of it by default.

    Raises:
        FeatureFileError: it is declared larger than it is.
    """
    with _reading(dataset.file, dataset.name):
        stored = dataset.id.get_storage_size()
        packed = dataset.id.get_create_plist().get_nfilters() > 0
    needed = math.prod(dataset.shape) * dataset.dtype.itemsize if nbytes is None else nbytes
    if needed > stored * (MOST_COMPRESSION if packed else 1):
        raise FeatureFileError(
            "a dataset of this file is declared larger than what the file holds of it.",
            file=dataset.file.filename,
            dataset=dataset.name,
            declared=f"{needed} bytes ({_dtype_name(dataset)} {dataset.shape})",
            holds=f"{stored} bytes",
        )


def dataset_names(file: h5py.File) -> list[str]:
    """Names of all datasets that no link leads to."""
    names: list[str] = []
    file.visititems(lambda name, it: names.append(name) if isinstance(it, h5py.Dataset) else None)
    return names


def feature_dtype(dataset: h5py.Dataset) -> str:
    """The dtype in which a store keeps this dataset; float64 becomes float32.

    Raises:
        FeatureFileError: it holds no floating-point numbers.
    """
    if dataset.dtype == np.uint16 and read_attribute(dataset, DTYPE_ATTRIBUTE) == "bfloat16":
        return "bfloat16"
    if dataset.dtype.name not in STORED_DTYPES:
        raise FeatureFileError(
            "features are float16, float32 or float64.",
            file=dataset.file.filename,
            dataset=dataset.name,
            holds=_dtype_name(dataset),
        )
    return STORED_DTYPES[dataset.dtype.name]


def read_rows(dataset: h5py.Dataset, selection: Any = ()) -> np.ndarray:
    """Read a part of a dataset, or all of it.

    Raises:
        FeatureFileError: the file is damaged, or packed by a filter that is not installed.
    """
    with _reading(dataset.file, dataset.name):
        return np.asarray(dataset[selection])


def read_attribute(place: h5py.Dataset | h5py.File, name: str) -> Any:
    """An attribute, None where there is none.

    Raises:
        FeatureFileError: the file is damaged.
    """
    with _reading(place.file, place.name):
        return place.attrs.get(name)


def read_texts(dataset: h5py.Dataset) -> list[str]:
    """Read a dataset (n,) of text.

    Raises:
        FeatureFileError: it is not text, not (n,), or not UTF-8.
    """
    require_held(dataset)
    if dataset.ndim != 1 or h5py.check_string_dtype(dataset.dtype) is None:
        raise FeatureFileError(
            "this dataset is not one text for each row.",
            file=dataset.file.filename,
            dataset=dataset.name,
            holds=f"{_dtype_name(dataset)} {dataset.shape}",
        )
    try:
        return [raw.decode() for raw in read_rows(dataset).tolist()]
    except UnicodeDecodeError:
        raise FeatureFileError(
            "this text is not UTF-8.", file=dataset.file.filename, dataset=dataset.name
        ) from None


def runs(marked: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of True."""
    edges = np.flatnonzero(np.diff(marked.astype(np.int8), prepend=0, append=0))
    yield from zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True)


def _dtype_name(dataset: h5py.Dataset) -> str:
    return "objects" if dataset.dtype.kind == "O" else str(dataset.dtype)
