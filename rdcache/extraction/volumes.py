"""What an extraction of volumes has beyond one of images: the box, and a teacher that suits it."""

from __future__ import annotations

from typing import Any

from rdcache.data import ImageDataset, require_volumes
from rdcache.errors import UsageError
from rdcache.extraction.config import ExtractConfig
from rdcache.models import Teacher, for_volumes

# Options that mean something for volumes only.
OF_VOLUMES = ("patch", "stride", "spacing", "slices")


def suited_to(
    dataset: ImageDataset, config: ExtractConfig, teacher: Teacher
) -> tuple[ExtractConfig, Teacher]:
    """The config and the teacher as they are for these images or volumes.

    Of volumes, the teacher is one for boxes of the size asked for, a teacher of images one that
    looks at their slices. Where a segmentation is asked for without a size, it is the teacher's.

    Raises:
        UsageError: the teacher looks at volumes but these are images; an option of volumes is given
            for images, or one of patches for whole volumes; or the volumes do not suit the teacher.
    """
    if dataset.dimensions == 2:
        _require_images(dataset, config, teacher)
        return config, teacher
    if dataset.task == "segmentation" and config.patch is None:
        if teacher.dimensions == 2:
            raise UsageError(
                f"the volumes of {dataset.name} are cut to boxes of one size, for their masks.",
                say="of how many voxels along z,y,x, as in --patch 32,96,96",
            )
        config = config.model_copy(update={"patch": teacher.of_volumes.patch})
    if config.patch is None and config.stride != 1:
        raise UsageError(
            "--stride is for patches, and whole volumes have none.",
            say="of how many voxels along z,y,x, as in --patch 96; or leave --stride out",
        )
    return config, for_volumes(teacher, dataset.channels, config.patch, config.slices)


def volume_parts(dataset: ImageDataset) -> dict[str, Any]:
    """Parts of a fingerprint that only volumes have: the spacing they are resampled to and the
    window of intensities that they share, if any.

    Both decide what is made of a file. The dataset's digest covers them, too, but stores of other
    datasets are copied from where a file occurs in both (see `reuse.py`).
    """
    if dataset.dimensions == 2:
        return {}
    facts = {"spacing": dataset.spec.spacing, "window": require_volumes(dataset).window}
    return {name: list(numbers) for name, numbers in facts.items() if numbers is not None}


def spacing_advice(dataset: ImageDataset, teacher: Teacher) -> str:
    """What a user should know who leaves volumes at another spacing than the teacher's own."""
    if teacher.dimensions == 2:
        return ""
    own = teacher.of_volumes.spacing
    if own is None or own == dataset.spec.spacing:
        return ""
    millimetres = ",".join(f"{each:g}" for each in own)
    return f"{teacher.name} was trained at {millimetres} mm (z,y,x): --spacing {millimetres}"


def window_advice(dataset: ImageDataset, teacher: Teacher) -> str:
    """What a user should know who shows a teacher of CT what may be something else.

    A dataset of CT has one window, which begins below water; one of MR has a range for each volume,
    MedMNIST has bytes.
    """
    own = teacher.of_volumes.window if teacher.dimensions == 3 else None
    shared = getattr(dataset, "window", None)
    if own is None or (shared is not None and shared[0] < 0):
        return ""
    low, high = (f"{bound:g}" for bound in own)
    return (
        f"{teacher.name} sees {low} to {high} Hounsfield units, and nothing says that these "
        "volumes are CT: others turn nearly black, white or grey"
    )


def _require_images(dataset: ImageDataset, config: ExtractConfig, teacher: Teacher) -> None:
    if teacher.dimensions == 3:
        raise UsageError(
            f"{teacher.name} looks at volumes, and {dataset.name} holds images.",
            next="a teacher of images; see `rdcache list teachers`",
        )
    defaults = {name: field.default for name, field in ExtractConfig.model_fields.items()}
    for name in OF_VOLUMES:
        if getattr(config, name) != defaults[name]:
            raise UsageError(f"--{name} is for volumes, and {dataset.name} holds images.")
