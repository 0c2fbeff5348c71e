"""Decoded volumes in a folder, mapped by every process that needs them.

Unpacking and resampling a volume takes seconds, reading a patch of one that is mapped milliseconds.
Each volume is a file of values, one of its mask where it has one, and last one of facts, each
written whole or not at all, so that a volume is there once its facts are. The folder's name is a
digest of what decides its content. It is its owner's alone, since volumes show patients.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from rdcache.data import volumes
from rdcache.data.pixel_file import FOLDER, require_own
from rdcache.data.volumes import Grid, Volume
from rdcache.errors import CorruptInputsError, FileWriteError
from rdcache.files import write_text, write_whole


class KeptVolumes:
    """Volumes and masks of one dataset in a folder of the user's.

    Args:
        folder: may hold those of other datasets, too.

    Raises:
        UsageError: the folder is open to others.
        FileWriteError: it cannot be written.
    """

    def __init__(self, folder: Path, dataset_digest: str) -> None:
        private = folder / FOLDER
        try:
            private.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise FileWriteError(
                "volumes cannot be kept here.",
                folder=private,
                why=error.strerror or error,
                next="choose another folder with --inputs-cache, or leave it out",
            ) from error
        require_own(private)
        key = hashlib.sha256(f"{dataset_digest} {volumes.VERSION}".encode()).hexdigest()[:32]
        self.folder = private / f"volumes-{key}"
        self._checked: set[Path] = set()

    def __contains__(self, number: int) -> bool:
        return self._facts(number).is_file()

    def __getitem__(self, number: int) -> Volume:
        """One volume, its values in the file's own pages.

        Raises:
            CorruptInputsError: they do not match their checksum.
        """
        facts = json.loads(self._facts(number).read_text(encoding="utf-8"))
        grid = Grid(tuple(facts["grid"]["shape"]), np.array(facts["grid"]["affine"]))
        z, y, x = facts["spacing"]
        return Volume(
            self._array(number, "values", facts),
            (z, y, x),
            np.array(facts["affine"]),
            np.array(facts["low"], np.float32),
            np.array(facts["high"], np.float32),
            grid,
        )

    def mask(self, number: int) -> np.ndarray:
        """Its mask: uint8 (D, H, W).

        Raises:
            CorruptInputsError: it does not match its checksum.
        """
        facts = json.loads(self._facts(number).read_text(encoding="utf-8"))
        return self._array(number, "mask", facts)

    def keep(self, number: int, volume: Volume, mask: np.ndarray | None) -> None:
        """Write one volume.

        Raises:
            FileWriteError: the disk is full.
        """
        arrays = (
            {"values": volume.values} if mask is None else {"values": volume.values, "mask": mask}
        )
        checksums = {}
        for name, array in arrays.items():
            whole = np.ascontiguousarray(array)
            checksums[name] = google_crc32c.value(whole.reshape(-1).view(np.uint8))
            write_whole(self._path(number, name), partial(_save, whole))
        facts = {
            "spacing": list(volume.spacing),
            "affine": volume.affine.tolist(),
            "low": volume.low.ravel().tolist(),
            "high": volume.high.ravel().tolist(),
            "grid": {"shape": list(volume.grid.shape), "affine": volume.grid.affine.tolist()},
            "crc32c": checksums,
        }
        write_text(self._facts(number), json.dumps(facts))

    def _facts(self, number: int) -> Path:
        return self.folder / f"{number}.json"

    def _path(self, number: int, name: str) -> Path:
        return self.folder / f"{number}.{name}.npy"

    def _array(self, number: int, name: str, facts: dict[str, Any]) -> np.ndarray:
        path = self._path(number, name)
        try:
            array = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError, EOFError) as error:  # gone, or shorter than it says
            raise _damaged(path) from error
        if path not in self._checked:
            if google_crc32c.value(array.reshape(-1).view(np.uint8)) != facts["crc32c"][name]:
                raise _damaged(path)
            self._checked.add(path)
        return array


def _damaged(path: Path) -> CorruptInputsError:
    return CorruptInputsError(
        "a volume that was kept for students is damaged.",
        file=path,
        next="delete its folder, it is made again; and have an eye on the disk",
    )


def _save(array: np.ndarray, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
