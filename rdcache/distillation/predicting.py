"""What a finished run's student says about files that are in no dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rdcache.data import (
    CLEAN_VIEW,
    DatasetSpec,
    ImageDataset,
    LeakReport,
    Sample,
    UnreadableImageError,
    Volume,
    write_on_original_grid,
)
from rdcache.data.listing import read_file, stamp_file
from rdcache.data.volume_dataset import VolumeDataset
from rdcache.data.volume_files import VOLUME_SUFFIXES, read_volume, stamp_volume, volume_stem
from rdcache.data.volume_resampling import resampled_shape
from rdcache.data.volumes import Spacing
from rdcache.distillation.batches import CleanViews
from rdcache.distillation.evaluation import Predictions, predict, require_finite
from rdcache.distillation.hardware import autocast_for, on_device
from rdcache.distillation.reevaluation import clean_inputs
from rdcache.distillation.run import Run
from rdcache.distillation.whole_images import image_logits, volume_logits
from rdcache.errors import DatasetError, UsageError
from rdcache.files import write_whole
from rdcache.models import Student, choose_device

HALF = 0.5


@dataclass(frozen=True)
class FilePrediction:
    """What a student says about one file.

    Attributes:
        probabilities: class → probability; nothing for a segmentation.
        predicted: the most probable class; of several labels those that are at least as probable as
            not; of a segmentation those that the mask has.
        mask: where the mask was written.
        extent: class → pixels or voxels of the mask.
    """

    file: Path
    probabilities: Mapping[str, float] = field(default_factory=dict)
    predicted: tuple[str, ...] = ()
    mask: Path | None = None
    extent: Mapping[str, int] = field(default_factory=dict)

    def as_facts(self) -> dict[str, Any]:
        """As JSON values, without what there is nothing of."""
        facts: dict[str, Any] = {"file": str(self.file), "predicted": list(self.predicted)}
        if self.mask is None:
            return {**facts, "probabilities": dict(self.probabilities)}
        return {**facts, "mask": str(self.mask), "extent": dict(self.extent)}


def predict_files(
    run: Run, files: Sequence[Path], out: Path | None = None, device: str = "auto"
) -> list[FilePrediction]:
    """Classify or segment files by a run's saved student; needs neither store nor dataset.

    Masks are written into a folder: of images as PNG in their own size, black and white for one
    class, else as class numbers with colours; of volumes as NIfTI on the file's own grid.

    Args:
        files: images, or volumes: NIfTI, folders of a DICOM series, NumPy files.
        out: where masks are written.

    Raises:
        UsageError: no file, masks without a folder, or two that would have one name.
        DatasetError: a file cannot be read, or has other channels than the student was trained on.
    """
    task, dimensions = run.task
    if not files:
        raise UsageError("there is nothing to predict: no file is given.")
    masks = _mask_paths(files, dimensions, out) if task == "segmentation" else []
    place = choose_device(device)
    student = on_device(run.student, place).eval()
    dataset = _dataset_of(run, files)
    clean = clean_inputs(run, dataset, student, place)
    classes = tuple(run.result["dataset"]["classes"])
    samples = np.arange(len(files))
    with autocast_for(place, run.config["config"]["amp"])():
        if task != "segmentation":
            labels = np.zeros(len(files), np.int64)
            several = task == "multilabel"
            said = predict(student, clean.images(samples), samples, labels, multilabel=several)
            return _classified(files, said, classes, several)
        segment = _segmented_volume if dimensions == 3 else _segmented_image
        return [
            _with_mask(file, mask, segment(student, clean, number, mask, len(classes)), classes)
            for number, (file, mask) in enumerate(zip(files, masks, strict=True))
        ]


def _classified(
    files: Sequence[Path], said: Predictions, classes: Sequence[str], several: bool
) -> list[FilePrediction]:
    found = []
    for file, row in zip(files, said.probabilities, strict=True):
        names = [name for name, p in zip(classes, row, strict=True) if p >= HALF]
        chosen = names if several else [classes[int(row.argmax())]]
        probabilities = dict(zip(classes, row.tolist(), strict=True))
        found.append(FilePrediction(file, probabilities, tuple(chosen)))
    return found


@torch.no_grad()
def _segmented_image(
    student: Student, clean: CleanViews, number: int, path: Path, classes: int
) -> np.ndarray:
    """Segment one image and write its mask: class numbers, uint8 (H, W)."""
    images = next(clean.images(np.array([number])))
    width, height = clean.dataset.samples[number].size
    box = clean.inputs.parameters[CLEAN_VIEW, number]
    logits = student(images).logits[0].float()
    require_finite(logits)
    logits = image_logits(logits, box, (height, width))
    mask = logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
    picture = Image.fromarray(mask * 255 if classes == 2 else mask)
    if classes > 2:
        picture.putpalette(_palette(classes))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda partial: picture.save(partial, format="PNG"))
    return mask


@torch.no_grad()
def _segmented_volume(
    student: Student, clean: CleanViews, number: int, path: Path, classes: int
) -> np.ndarray:
    """Segment one volume and write its mask: class numbers, uint8 along the file's own axes."""
    volume: Volume = clean.dataset.decode(number)  # type: ignore[assignment]
    logits = volume_logits(student, volume, clean.patch, clean.device)
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_on_original_grid(logits.softmax(dim=0).numpy(), volume, path)


def _with_mask(file: Path, path: Path, mask: np.ndarray, classes: Sequence[str]) -> FilePrediction:
    counts = np.bincount(mask.ravel(), minlength=len(classes)).tolist()
    extent = dict(zip(classes[1:], counts[1:], strict=True))
    return FilePrediction(
        file, predicted=tuple(name for name, n in extent.items() if n), mask=path, extent=extent
    )


def _mask_paths(files: Sequence[Path], dimensions: int, out: Path | None) -> list[Path]:
    """Where the mask of each file goes.

    Raises:
        UsageError: nowhere, or two to one place.
    """
    if out is None:
        raise UsageError("masks need a folder to be written to.", next="--out FOLDER")
    taken: dict[str, Path] = {}
    for file in files:
        name = f"{volume_stem(file)}.nii.gz" if dimensions == 3 else f"{file.stem}.png"
        if name in taken:
            raise UsageError(
                "two masks would have one name.",
                name=name,
                files=f"{taken[name]} and {file}",
                next="one call for each folder, with --out folders of their own",
            )
        taken[name] = file
    for name, file in taken.items():
        if (out / name).resolve() == file.resolve():
            raise UsageError("a mask would replace the file that it is of.", file=file)
    return [out / name for name in taken]


def _dataset_of(run: Run, files: Sequence[Path]) -> ImageDataset:
    """The files as a dataset that lives as long as this call.

    Raises:
        DatasetError: one of them cannot be read.
    """
    volumes = run.task[1] == 3
    window = run.result.get("window")
    bounds = (float(window[0]), float(window[1])) if window else None

    def read(path: Path) -> Any:
        return read_volume(path, bounds) if volumes else read_file(path)

    spec = DatasetSpec.from_dict(run.result["dataset"]["spec"])
    stamp = stamp_volume if volumes else stamp_file
    samples = tuple(_sample(run, spec, file, number, read) for number, file in enumerate(files))
    facts: dict[str, Any] = {
        "spec": spec,
        "title": "files",
        "classes": tuple(run.result["dataset"]["classes"]),
        "symmetry": run.result["views"]["symmetry"],
        "samples": samples,
        "skipped": (),
        "leaks": LeakReport(),
        "read": read,
        "stamp": stamp,
    }
    if volumes:
        channels = len(run.student.mean)
        return VolumeDataset(**facts, dimensions=3, channels=channels, window=bounds)
    return ImageDataset(**facts)


def _sample(run: Run, spec: DatasetSpec, file: Path, number: int, read: Any) -> Sample:
    try:
        content = read(file)
        stamp = (stamp_volume if run.task[1] == 3 else stamp_file)(file)
    except (OSError, UnreadableImageError) as error:
        known = ", ".join(VOLUME_SUFFIXES) + ", a folder of DICOM files"
        raise DatasetError(
            "this file cannot be predicted.",
            file=file,
            why=error,
            **({"volumes_are": known} if run.task[1] == 3 else {}),
        ) from error
    spacing: Spacing | None = None
    if isinstance(content, Volume):
        _require_channels(run.student, content, file)
        size: tuple[int, ...] = resampled_shape(content.shape, content.spacing, spec.spacing)
        spacing = content.spacing
    else:
        size = content.shape[1], content.shape[0]
    return Sample(
        uid=f"{number:032x}",
        path=file,
        name=file.name,
        label=0,
        split="test",
        group=None,
        size=size,
        stamp=stamp,
        spacing=spacing,
    )


def _require_channels(student: Student, volume: Volume, file: Path) -> None:
    if len(volume.values) != len(student.mean):
        raise DatasetError(
            "this volume has other channels than the student was trained on.",
            file=file,
            channels=len(volume.values),
            trained_on=len(student.mean),
        )


def _palette(classes: int) -> list[int]:
    """Colours that neighbouring numbers are told apart by, the background black."""
    colours = [0, 0, 0]
    for number in range(1, classes):
        bits = [(number >> bit) & 1 for bit in range(8)]
        colours += [
            sum(bits[channel + 3 * level] << (7 - level) for level in range(2 + (channel < 2)))
            for channel in range(3)
        ]
    return colours
