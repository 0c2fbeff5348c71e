"""Files of volumes: NIfTI, folders of a DICOM series, NumPy arrays; and masks in the same formats.

| file                    | axes                    | spacing and place                            |
| ----------------------- | ----------------------- | -------------------------------------------- |
| `.nii`, `.nii.gz`       | its own; 4th: channels  | its affine; slope and intercept are applied  |
| folder of `.dcm` files  | its own                 | of the series; values are rescaled (CT: HU)  |
| `.npy`                  | (D, H, W), (C, D, H, W) | 1 mm                                         |
| `.npz`                  | as `.npy`, in `image`   | `spacing` in mm along z, y, x; else 1 mm     |

NIfTI needs nibabel and DICOM needs SimpleITK, which come with `pip install 'rdcache[volumes]'`.
"""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from gzip import BadGzipFile, GzipFile
from io import BytesIO
from itertools import product
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from rdcache.data import dicom_series
from rdcache.data.decoding import UnreadableImageError
from rdcache.data.listing import stamp_file
from rdcache.data.optional_readers import needed
from rdcache.data.volumes import Grid, Volume, make_volume, oriented

NIFTI = (".nii", ".nii.gz")
ARRAYS = (".npy", ".npz")
VOLUME_SUFFIXES = (*NIFTI, *ARRAYS)
MOST_BYTES = 2**32  # of one file, unpacked: a thousand slices of 512×512 in double precision
PART_BYTES = 2**24  # that are unpacked at once
HEADER_BYTES = 544  # of NIfTI-2, the longer one
NAMES_IN_NPZ = ("image", "volume", "data", "arr_0", "label", "mask")
MOST_APART = 0.5  # voxels by which the corners of a mask may lie beside those of its image
SINGULAR = 1e-6  # of the volume that the voxel's edges would span at right angles
LISTED = 6


class UnreadableVolumeError(UnreadableImageError):
    """Why a file is no volume that can be used; `str()` is the reason."""


@dataclass(frozen=True, eq=False)
class Content:
    """What a file holds.

    Attributes:
        values: (I, J, K, C) on the file's grid.
    """

    values: np.ndarray
    grid: Grid


def is_volume(path: Path) -> bool:
    """Whether a path is named like a volume, or is a folder of DICOM files."""
    if path.name.startswith("."):  # macOS's `._*` beside the files of an archive
        return False
    return path.name.lower().endswith(VOLUME_SUFFIXES) or dicom_series.is_series(path)


def volume_stem(path: PurePath) -> str:
    """A file's name without its suffix, which may have two parts."""
    lower = path.name.lower()
    suffix = next((suffix for suffix in VOLUME_SUFFIXES[::-1] if lower.endswith(suffix)), "")
    return path.name[: len(path.name) - len(suffix)]


def read_volume(path: Path, window: tuple[float, float] | None = None) -> Volume:
    """Read a volume at its own spacing.

    Args:
        window: see `make_volume`.

    Raises:
        UnreadableVolumeError: damaged, not finite, not three-dimensional, or nowhere in space.
        OSError: it cannot be opened.
    """
    return open_volume(path, window)[1]


def open_volume(path: Path, window: tuple[float, float] | None = None) -> tuple[bytes, Volume]:
    """A volume, and bytes that tell it from others: those of its file, or digests of them."""
    if path.is_dir():
        content = _checked(Content(*_series(path)))
        digests = [hashlib.blake2b(f.read_bytes()).digest() for f in dicom_series.files(path)]
        return b"".join(sorted(digests)), make_volume(content.values, content.grid, window)
    data = path.read_bytes()
    content = _checked(_decoded(path, data))
    return data, make_volume(content.values, content.grid, window)


def stamp_volume(path: Path) -> tuple[int, int]:
    """As `stamp_file`; of a series, all bytes and the latest time."""
    if not path.is_dir():
        return stamp_file(path)
    stamps = [stamp_file(file) for file in dicom_series.files(path)]
    return sum(size for size, _ in stamps), max((time for _, time in stamps), default=-1)


def read_class_numbers(
    path: Path, image: Path, relabel: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
    """Read a mask that lies on the grid of its image.

    Args:
        relabel: makes class numbers of the file's whole numbers, or says what is wrong with them.

    Returns:
        uint8 (D, H, W), along z, y, x.

    Raises:
        UnreadableVolumeError: it lies elsewhere, has several channels, or numbers no class has.
        OSError: it cannot be opened.
    """
    content = _checked(
        _decoded(path, path.read_bytes()) if path.is_file() else Content(*_series(path))
    )
    if content.values.shape[3] != 1:
        raise UnreadableVolumeError(f"it has {content.values.shape[3]} channels; a mask has one")
    grid = grid_of(image)
    _require_same_grid(content.grid, grid)
    numbers = content.values[..., 0]
    if numbers.dtype.kind == "f":
        whole = np.rint(numbers)
        if not np.array_equal(whole, numbers):
            raise UnreadableVolumeError("its numbers are not whole")
        numbers = whole.astype(np.int64)
    labels = relabel(numbers).astype(np.uint8)
    # By the image's affine: where one is turned by 45°, the mask's own may round the other way.
    return np.ascontiguousarray(oriented(labels, grid)[0])


def grid_of(path: Path) -> Grid:
    """The grid of a file; of NIfTI, only its header is read."""
    if path.name.lower().endswith(NIFTI):
        with path.open("rb") as file:
            opened: Any = GzipFile(fileobj=file) if path.name.lower().endswith(".gz") else file
            return _grid_of_header(_header(_unpacked(lambda: opened.read(HEADER_BYTES))))
    content = Content(*_series(path)) if path.is_dir() else _decoded(path, path.read_bytes())
    return content.grid


def _decoded(path: Path, data: bytes) -> Content:
    if not data:
        raise UnreadableVolumeError("the file is empty")
    name = path.name.lower()
    if name.endswith(".gz"):
        data = _unpacked(lambda: _whole(GzipFile(fileobj=BytesIO(data))))
    if len(data) > MOST_BYTES:
        raise UnreadableVolumeError(f"more than the {MOST_BYTES / 1e9:.1f} GB we decode")
    return _of_nifti(data) if name.endswith(NIFTI) else _of_arrays(data)


def _unpacked(read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except (BadGzipFile, EOFError, zlib.error) as error:
        raise UnreadableVolumeError(f"damaged or cut short ({error})") from None


def _whole(archive: GzipFile) -> bytes:
    """All that an archive holds, or more than `MOST_BYTES`.

    Part by part: memory for what is asked for is taken before anything is read.
    """
    data = BytesIO()
    while data.tell() <= MOST_BYTES and (part := archive.read(PART_BYTES)):
        data.write(part)
    return data.getvalue()


def _header(data: bytes) -> Any:
    nibabel = needed("nibabel", "NIfTI files")
    kinds = (nibabel.Nifti1Header, nibabel.Nifti2Header)
    for kind in kinds:
        try:
            header = kind.from_fileobj(BytesIO(data), check=False)
            if int(header["sizeof_hdr"]) == kind.sizeof_hdr:
                return header
        except Exception:  # whatever bytes that are no header make it raise
            continue
    raise UnreadableVolumeError("no NIfTI file, whatever its name says")


def _grid_of_header(header: Any) -> Grid:
    shape = header.get_data_shape()
    if len(shape) < 3 or min(shape) < 1:
        raise UnreadableVolumeError(f"it has the shape {_times(shape)}: no volume")
    return Grid(shape[:3], np.asarray(header.get_best_affine(), np.float64))


def _of_nifti(data: bytes) -> Content:
    nibabel = needed("nibabel", "NIfTI files")
    header = _header(data[:HEADER_BYTES])
    grid = _grid_of_header(header)
    # Singleton axes between space and channels, as the format has them for vectors.
    rest = [side for side in header.get_data_shape()[3:] if side > 1]
    if len(rest) > 1:
        raise UnreadableVolumeError(f"it has the shape {_times(header.get_data_shape())}")
    declared = int(np.prod(header.get_data_shape(), dtype=float)) * header["bitpix"].item() / 8
    if header["vox_offset"].item() + declared > len(data):
        raise UnreadableVolumeError(
            f"damaged or cut short ({len(data):,} bytes, and its header promises more)"
        )
    image_kind = nibabel.Nifti1Image if header.sizeof_hdr == 348 else nibabel.Nifti2Image
    try:
        values = np.asarray(image_kind.from_bytes(data).dataobj)
    except Exception as error:  # damaged headers make it raise nearly anything
        raise UnreadableVolumeError(f"damaged or cut short ({error})") from None
    return Content(values.reshape(*grid.shape, -1), grid)


def _of_arrays(data: bytes) -> Content:
    try:
        held = np.load(BytesIO(data), allow_pickle=False)
        spacing = [1.0, 1.0, 1.0]
        if not isinstance(held, np.ndarray):
            names = held.files
            if "spacing" in names:
                spacing = np.asarray(held["spacing"], np.float64).reshape(3).tolist()
            known = [name for name in NAMES_IN_NPZ if name in names] or names[:1]
            held = held[known[0]]
    except (
        OSError,
        ValueError,
        EOFError,
        KeyError,
        IndexError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UnreadableVolumeError(f"no array we read ({error})") from None
    if held.ndim not in (3, 4) or held.dtype.kind not in "biuf":
        raise UnreadableVolumeError(f"an array of {held.dtype} of the shape {_times(held.shape)}")
    channels = held if held.ndim == 4 else held[None]
    grid = Grid(channels.shape[:0:-1], np.diag([*spacing[::-1], 1.0]))
    return Content(channels.transpose(3, 2, 1, 0), grid)


def _series(folder: Path) -> tuple[np.ndarray, Grid]:
    try:
        return dicom_series.read(folder)
    except dicom_series.UnusableSeriesError as error:
        raise UnreadableVolumeError(str(error)) from None


def _checked(content: Content) -> Content:
    """Refuse what nobody could use: no numbers, NaN, a place that is none."""
    values, grid = content.values, content.grid
    if values.dtype.kind not in "biuf":
        raise UnreadableVolumeError(f"it holds {values.dtype}, not one number a voxel")
    if values.size == 0:
        raise UnreadableVolumeError(f"it has the shape {_times(values.shape)}: no voxels")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        count = int(values.size - np.count_nonzero(np.isfinite(values)))
        raise UnreadableVolumeError(f"{count:,} of its {values.size:,} voxels are NaN or Inf")
    edges = grid.affine[:3, :3]
    lengths = np.linalg.norm(edges, axis=0)
    if not np.isfinite(grid.affine).all() or abs(np.linalg.det(edges)) <= SINGULAR * lengths.prod():
        raise UnreadableVolumeError(
            "its affine is singular: the file does not tell where its voxels lie"
        )
    return content


def _require_same_grid(mask: Grid, image: Grid) -> None:
    if mask.shape != image.shape:
        raise UnreadableVolumeError(
            f"it has {_times(mask.shape)} voxels, and its image {_times(image.shape)}"
        )
    # All eight: a mask whose axes are exchanged shares two of them with its image.
    ends = ((0, side - 1) for side in image.shape)
    corners = np.array([[*corner, 1] for corner in product(*ends)], float)
    apart = np.linalg.norm((corners @ (mask.affine - image.affine).T)[:, :3], axis=1).max()
    if apart > MOST_APART * min(image.spacing):
        raise UnreadableVolumeError(
            f"it lies {apart:.3g} mm beside its image: their affines differ"
        )


def _times(sides: Any) -> str:
    return "×".join(map(str, sides))
