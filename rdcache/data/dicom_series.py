"""DICOM series: a folder of files, one for each slice.

A folder holds one series. Series of a single image (scouts, secondary captures) are left out beside
another; of two real ones none is chosen, since nothing tells which one is meant.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rdcache.data.optional_readers import needed
from rdcache.data.volumes import Grid

SUFFIXES = (".dcm", ".dicom", ".ima")
UNEVEN = 0.02  # of the distance of slices, by which single ones may differ
TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM counts millimetres to the left and to the back
POSITION = "0020|0032"


class UnusableSeriesError(ValueError):
    """Why a folder is no series that can be used; `str()` is the reason."""


def files(folder: Path) -> list[Path]:
    """The DICOM files directly in a folder, sorted by name; hidden ones left out."""
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )


def is_series(path: Path) -> bool:
    """Whether a path is a folder of DICOM files."""
    return path.is_dir() and bool(files(path))


def read(folder: Path) -> tuple[np.ndarray, Grid]:
    """Read the series of a folder.

    Returns:
        (I, J, K, C) rescaled values, and their grid.

    Raises:
        UnusableSeriesError: several series, slices that are missing, or damaged files.
    """
    sitk = needed("SimpleITK", "DICOM series")
    reader = sitk.ImageSeriesReader()
    names = _one_series(sitk, folder)
    reader.SetFileNames(names)
    reader.MetaDataDictionaryArrayUpdateOn()
    try:
        image = reader.Execute()
        positions = [_position(reader.GetMetaData(each, POSITION)) for each in range(len(names))]
    except RuntimeError as error:  # all that ITK ever raises
        raise UnusableSeriesError(f"damaged or not of one size ({_last_line(error)})") from None
    _require_even(np.array(positions))
    step = np.subtract(positions[-1], positions[0]) / (len(positions) - 1)
    values = sitk.GetArrayViewFromImage(image)  # (k, j, i) or (k, j, i, c)
    values = values if values.ndim == 4 else values[..., None]
    directions = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    directions[:, 2] = step  # ITK's is upright on the slices, which it is not under a tilted gantry
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions, image.GetOrigin()
    width, height, depth = image.GetSize()
    return values.transpose(2, 1, 0, 3).copy(), Grid((width, height, depth), TO_RAS @ affine)


def _one_series(sitk: object, folder: Path) -> list[str]:
    find = sitk.ImageSeriesReader  # type: ignore[attr-defined]
    every = {
        series: find.GetGDCMSeriesFileNames(str(folder), series)
        for series in find.GetGDCMSeriesIDs(str(folder))
    }
    volumes = {series: names for series, names in every.items() if len(names) > 1}
    if not volumes:
        raise UnusableSeriesError("no DICOM series of more than one slice")
    if len(volumes) > 1:
        counts = ", ".join(f"{len(names)} slices in …{s[-12:]}" for s, names in volumes.items())
        raise UnusableSeriesError(
            f"{len(volumes)} series in one folder; give each its own ({counts})"
        )
    return list(next(iter(volumes.values())))


def _position(text: str) -> list[float]:
    return [float(number) for number in text.split("\\")]


def _require_even(positions: np.ndarray) -> None:
    """Slices that are missing would make all that lies behind them too near."""
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    usual = float(np.median(steps))
    if usual <= 0 or (np.abs(steps - usual) > UNEVEN * usual).any():
        raise UnusableSeriesError(
            "its slices are unevenly spaced: some are missing, or there twice "
            f"({steps.min():.3g} to {steps.max():.3g} mm apart)"
        )


def _last_line(error: RuntimeError) -> str:
    return str(error).strip().splitlines()[-1].strip()[:200]
