"""MedMNIST v2 in three dimensions: six sets of small volumes with official splits.

Each set is one `.npz` file, of 28×28×28 voxels, or of 64 with the size in its name:
`organmnist3d`, `organmnist3d_64`. The files say nothing of orientation and spacing: the first axis
is taken for z, and a voxel for 1 mm.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from rdcache.data.listing import Entry, Listing
from rdcache.data.medmnist import SOURCE, SPLIT, MedmnistSet, entries_of, places
from rdcache.data.medmnist_files import read_image, read_splits, require_memory, stamp_image
from rdcache.data.registry import register
from rdcache.data.volumes import Grid, Volume, make_volume
from rdcache.errors import DatasetError

SIZES = ("", "_64")
WINDOW = (0.0, 255.0)  # their bytes are a window of the original already

SETS = (
    MedmnistSet(
        "organmnist3d",
        "OrganMNIST3D, organs in CT (LiTS)",
        (
            "liver",
            "kidney-right",
            "kidney-left",
            "femur-right",
            "femur-left",
            "bladder",
            "heart",
            "lung-right",
            "lung-left",
            "spleen",
            "pancreas",
        ),
        "none",
    ),
    MedmnistSet(
        "nodulemnist3d",
        "NoduleMNIST3D, lung nodules in CT (LIDC-IDRI)",
        ("benign", "malignant"),
        "d4",
    ),
    MedmnistSet(
        "adrenalmnist3d",
        "AdrenalMNIST3D, shapes of adrenal glands",
        ("normal", "hyperplasia"),
        "hflip",
    ),
    MedmnistSet(
        "fracturemnist3d",
        "FractureMNIST3D, rib fractures in CT (RibFrac)",
        ("buckle rib fracture", "nondisplaced rib fracture", "displaced rib fracture"),
        "hflip",
    ),
    MedmnistSet(
        "vesselmnist3d",
        "VesselMNIST3D, shapes of brain vessels (IntrA)",
        ("vessel", "aneurysm"),
        "d4",
    ),
    MedmnistSet(
        "synapsemnist3d",
        "SynapseMNIST3D, synapses in electron microscopy",
        ("inhibitory synapse", "excitatory synapse"),
        "d4",
    ),
)


def list_volumes(the_set: MedmnistSet, file: Path) -> Listing:
    """Every volume of a file, in its official split.

    Raises:
        DatasetError: it is no such file, or not of this set.
    """
    splits = read_splits(file)
    for split, part in splits.items():
        # An image in colour is (H, W, 3).
        if len(part.shape) != 3 or part.shape[2] == 3:
            raise DatasetError(
                f"this file is not of {the_set.name}: it holds no volumes.",
                file=file,
                found=f"{split}: {len(part)} of {'×'.join(map(str, part.shape))}",
            )
    require_memory(file, splits)
    return Listing(
        tuple(entries_of(file, splits, the_set.classes, the_set.task)),
        the_set.classes,
        official={split: f"{split}_images" for split in splits},
        open=_open,
        read=_read,
        stamp=stamp_image,
        task=the_set.task,
        dimensions=3,
        window=WINDOW,
    )


def _read(path: Path) -> Volume:
    stored = read_image(path)
    depth, height, width = stored.shape
    grid = Grid((width, height, depth), np.eye(4))
    return make_volume(stored.transpose(2, 1, 0)[..., None], grid, WINDOW)


def _open(entry: Entry) -> tuple[bytes, Volume]:
    volume = _read(entry.path)
    return volume.values.astype(np.uint8).tobytes(), volume


for _set in SETS:
    for _size in SIZES:
        register(
            _set.name + _size,
            title=_set.title,
            classes=_set.classes,
            split=SPLIT,
            symmetry=_set.symmetry,
            licence=_set.licence,
            source=SOURCE,
            folders=places(_set.name + _size),
            layout=f"the file {_set.name}{_size}.npz",
            task=_set.task,
            dimensions=3,
            few=0,
            variant_of=_set.name if _size else "",
        )(partial(list_volumes, _set))
