"""What a dataset consists of: samples in a fixed order, and what was left out and why."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from rdcache.data.decoding import UnreadableImageError
from rdcache.data.leaks import Label, LeakReport
from rdcache.data.salting import CHECK
from rdcache.data.volumes import Spacing
from rdcache.errors import DatasetError, UsageError
from rdcache.store import SPLITS

Symmetry = Literal["none", "hflip", "d4"]
Task = Literal["multiclass", "multilabel", "segmentation"]


@dataclass(frozen=True)
class DatasetSpec:
    """Which dataset, and how it is split; enough to load it again elsewhere.

    Attributes:
        name: a catalogue name, `folder:PATH` or `table:FILE`.
        seed: of the splits that are drawn here.
        val_fraction: part of the training samples kept for validation, where there is no official
            validation split.
        test_fraction: part of all samples kept for the test, where there is no official split.
        drop_leaks: whether test samples that also occur in train or val are left out.
        spacing: of volumes, millimetres from voxel to voxel along z, y, x that they are resampled
            to; None: as they are.
    """

    name: str
    seed: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.2
    drop_leaks: bool = False
    spacing: Spacing | None = None

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1.")
        if self.seed < 0:
            raise UsageError(f"the seed of the splits is {self.seed}; it must not be negative.")
        if self.spacing is not None and (
            len(self.spacing) != 3 or not all(0 < each < math.inf for each in self.spacing)
        ):
            raise UsageError(
                "a spacing is three positive numbers, millimetres along z, y and x.",
                given=", ".join(map(str, self.spacing)),
            )

    def to_dict(self) -> dict[str, Any]:
        """All attributes as JSON values, a spacing only where there is one; of a path, only its
        last part.
        """
        values = {**asdict(self), "name": portable_name(self.name)}
        spacing = values.pop("spacing")
        return values if spacing is None else {**values, "spacing": list(spacing)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetSpec:
        """Read back what `to_dict` gave."""
        spacing = values.get("spacing")
        return cls(**{**values, "spacing": None if spacing is None else tuple(spacing)})


def portable_name(name: str) -> str:
    """`folder:/home/me/images` → `folder:images`: a shared store tells nobody's folders."""
    family, separator, path = name.partition(":")
    if not separator:
        return name
    last = Path(path).name
    return f"{family}:{last if last not in ('', '..') else Path(path).resolve().name}"


@dataclass(frozen=True)
class Sample:
    """One image with its label, and in segmentation with its mask.

    Attributes:
        uid: 32 hexadecimal digits that depend on the file's content alone (and, among identical
            files, on their order), and on a salt where there is one.
        path: where its pixels are; for drawn data, a name.
        name: path relative to the dataset's folder, with `/`; of a table, as it is written there.
        label: class number; multi-label: 0 or 1 for each class; segmentation: the stratum that
            drawn splits are balanced by.
        group: samples that share it (one lesion, one patient) belong in one split.
        size: (width, height) in pixels, upright; of volumes, voxels along z, y, x at the dataset's
            spacing.
        stamp: (bytes, modification time in ns) of the file when it was looked at.
        masks: where its mask is: one file, or several whose union it is.
        mask_digest: blake2b-128 of the mask's size and class numbers, in hexadecimal digits.
        mask_stamp: of all its mask files when they were looked at, see `mask_stamp`.
        mask_counts: pixels of each class in the mask, the background first.
        spacing: of volumes, millimetres along z, y, x in the file.
    """

    uid: str
    path: Path
    name: str
    label: Label
    split: str
    group: str | None
    size: tuple[int, ...]
    stamp: tuple[int, int]
    masks: tuple[Path, ...] = ()
    mask_digest: str = ""
    mask_stamp: int = 0
    mask_counts: tuple[int, ...] = ()
    spacing: Spacing | None = None


class Masked(Protocol):
    """What a mask is read for: a sample, or an adapter's entry."""

    @property
    def path(self) -> Path:
        """Where the pixels are."""
        ...

    @property
    def masks(self) -> tuple[Path, ...]:
        """Where the mask is; see `Sample.masks`."""
        ...


def mask_stamp(stamps: Sequence[tuple[int, int]]) -> int:
    """One number, of 63 bits, for the stamps of all files of a mask."""
    digest = hashlib.blake2b(json.dumps(stamps).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


@dataclass(frozen=True)
class Skipped:
    """A file that was left out, by its path relative to the dataset, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class ImageDataset:
    """A dataset that has been scanned, checked and split.

    Attributes:
        samples: ordered train, val, test; by uid within each.
        symmetry: which mirrorings leave the meaning of an image unchanged: none (chest X-ray),
            left-right (ultrasound), or all eight of the square (dermoscopy).
        read: gives a sample's pixels, uint8 (H, W, 3), from its path.
        stamp: gives a file's stamp, see `Sample`, from its path.
        read_mask: gives a sample's mask, uint8 (H, W) class numbers; segmentation only.
        dimensions: 2, or 3 for volumes.
        channels: of each image as it is decoded.
        notes: what was done to it that its user may not expect, a sentence each.
        salt_check: tells the salt of the uids from others; empty where they are plain.
    """

    spec: DatasetSpec
    title: str
    classes: tuple[str, ...]
    symmetry: Symmetry
    samples: tuple[Sample, ...]
    skipped: tuple[Skipped, ...]
    leaks: LeakReport
    read: Callable[[Path], np.ndarray]
    stamp: Callable[[Path], tuple[int, int]]
    notes: tuple[str, ...] = ()
    task: Task = "multiclass"
    salt_check: str = ""
    dimensions: int = 2
    read_mask: Callable[[Masked], np.ndarray] | None = None
    channels: int = 3

    def __len__(self) -> int:
        return len(self.samples)

    def of_splits(self, splits: Sequence[str]) -> ImageDataset:
        """The samples of these splits alone."""
        return replace(self, samples=tuple(it for it in self.samples if it.split in splits))

    @property
    def name(self) -> str:
        """The name under which stores of it are kept: no folders of this machine."""
        return portable_name(self.spec.name)

    @cached_property
    def uids(self) -> np.ndarray:
        """Array of str (N,), in sample order."""
        return np.array([sample.uid for sample in self.samples])

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 (N,), in sample order; multi-label int64 (N, L), 0 or 1 for each class."""
        shape = (-1, len(self.classes)) if self.task == "multilabel" else (-1,)
        return np.array([sample.label for sample in self.samples], np.int64).reshape(shape)

    @property
    def findings(self) -> int:
        """Columns of the labels of a multi-label dataset; 0 for all others."""
        return len(self.classes) if self.task == "multilabel" else 0

    @cached_property
    def splits(self) -> np.ndarray:
        """Array of str (N,): `train`, `val` or `test`."""
        return np.array([sample.split for sample in self.samples])

    @cached_property
    def group_codes(self) -> np.ndarray:
        """int64 (N,): equal numbers for samples of one group, -1 for none."""
        names = sorted({sample.group for sample in self.samples if sample.group is not None})
        codes = {name: code for code, name in enumerate(names)}
        return np.array([codes.get(s.group, -1) if s.group else -1 for s in self.samples], np.int64)

    @cached_property
    def digest(self) -> str:
        """sha256 over classes and each sample's uid, label, split, group and, where there is one,
        mask, in sample order.
        """
        return self._samples_digest()

    def _samples_digest(self) -> str:
        hasher = hashlib.sha256(json.dumps(self.classes).encode())
        for sample, group in zip(self.samples, self.group_codes, strict=True):
            row = [sample.uid, sample.label, sample.split, int(group)]
            if self.task == "segmentation":
                row.append(sample.mask_digest)
            hasher.update(json.dumps(row).encode())
        return hasher.hexdigest()

    def facts(self, *, keep_paths: bool = False) -> dict[str, Any]:
        """What a manifest says of it: no path, no file name, nothing that names a patient.

        Args:
            keep_paths: also the path of each sample relative to the dataset's folder, in order.
        """
        return {
            "name": self.name,
            "spec": self.spec.to_dict(),
            "digest": self.digest,
            "classes": list(self.classes),
            "task": self.task,
            **(
                {"dimensions": self.dimensions, "channels": self.channels}
                if self.dimensions != 2
                else {}
            ),
            "counts": self.counts(),
            "leaks": self.leaks.to_dict(),
            # What is in parentheses is for who sees the file: it may quote from the file itself.
            "skipped": [skipped.reason.partition(" (")[0] for skipped in self.skipped],
            **({CHECK: self.salt_check} if self.salt_check else {}),
            **({"paths": [sample.name for sample in self.samples]} if keep_paths else {}),
        }

    def decode(self, index: int) -> np.ndarray:
        """Pixels of one sample: uint8 (H, W, 3), RGB, upright.

        Raises:
            DatasetError: the file is gone, broken, or another one than when it was looked at.
        """
        sample = self.samples[index]
        unchanged = self.stamp(sample.path) == sample.stamp
        with self._readable("an image", sample.path):
            pixels = self.read(sample.path)
        if not unchanged:
            raise self._changed("an image", sample.path)
        return pixels

    def decode_mask(self, index: int) -> np.ndarray:
        """Mask of one sample: uint8 (H, W), of volumes (D, H, W), the class number of each pixel.

        Raises:
            DatasetError: it is not a segmentation, or the mask is gone, broken, or another one than
                when it was looked at.
        """
        sample = self.samples[index]
        if self.read_mask is None:
            raise DatasetError(f"{self.name} has no masks.", task=self.task)
        files = ", ".join(str(path) for path in sample.masks) or str(sample.path)
        unchanged = mask_stamp([self.stamp(path) for path in sample.masks]) == sample.mask_stamp
        with self._readable("a mask", files):
            mask = self.read_mask(sample)
        if not unchanged:
            raise self._changed("a mask", files)
        return mask

    @contextmanager
    def _readable(self, what: str, file: object) -> Iterator[None]:
        try:
            yield
        except (OSError, UnreadableImageError) as error:
            raise DatasetError(
                f"{what} of {self.name} can no longer be read.",
                file=file,
                why=error,
                next="run again: it is then skipped, or read where it is back",
            ) from error

    def _changed(self, what: str, file: object) -> DatasetError:
        return DatasetError(
            f"{what} of {self.name} has changed since it was looked at.",
            file=file,
            next="run again: it is then looked at anew",
        )

    @cached_property
    def occurrence(self) -> np.ndarray:
        """bool (N, C): which classes occur in each sample; in segmentation, in its mask."""
        if self.task == "multilabel":
            return np.asarray(self.labels == 1)
        if self.task == "segmentation":
            counts = [sample.mask_counts for sample in self.samples]
            return np.array(counts, np.int64).reshape(-1, len(self.classes)) > 0
        return np.asarray(self.labels[:, None] == np.arange(len(self.classes)))

    def counts(self) -> dict[str, dict[str, int]]:
        """Split → class → number of samples in which it occurs."""
        return {
            split: {
                name: int(np.count_nonzero(self.occurrence[self.splits == split, number]))
                for number, name in enumerate(self.classes)
            }
            for split in SPLITS
        }
