"""What a dataset consists of: samples in a fixed order, and what was left out and why."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rdcache.data.decoding import UnreadableImageError
from rdcache.data.leaks import LeakReport
from rdcache.data.salting import CHECK
from rdcache.errors import DatasetError, UsageError
from rdcache.store import SPLITS

Symmetry = Literal["none", "hflip", "d4"]


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
    """

    name: str
    seed: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.2
    drop_leaks: bool = False

    def __post_init__(self) -> None:
        for name in ("val_fraction", "test_fraction"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; it must be from 0 to below 1.")
        if self.seed < 0:
            raise UsageError(f"the seed of the splits is {self.seed}; it must not be negative.")

    def to_dict(self) -> dict[str, Any]:
        """All attributes as JSON values; of a path, only its last part."""
        return {**asdict(self), "name": portable_name(self.name)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DatasetSpec:
        """Read back what `to_dict` gave."""
        return cls(**values)


def portable_name(name: str) -> str:
    """`folder:/home/me/images` → `folder:images`: a shared store tells nobody's folders."""
    family, separator, path = name.partition(":")
    if not separator:
        return name
    last = Path(path).name
    return f"{family}:{last if last not in ('', '..') else Path(path).resolve().name}"


@dataclass(frozen=True)
class Sample:
    """One image with its label.

    Attributes:
        uid: 32 hexadecimal digits that depend on the file's content alone (and, among identical
            files, on their order), and on a salt where there is one.
        path: where its pixels are; for drawn data, a name.
        name: path relative to the dataset's folder, with `/`; of a table, as it is written there.
        label: class number.
        group: samples that share it (one lesion, one patient) belong in one split.
        size: (width, height) in pixels, upright.
        stamp: (bytes, modification time in ns) of the file when it was looked at.
    """

    uid: str
    path: Path
    name: str
    label: int
    split: str
    group: str | None
    size: tuple[int, int]
    stamp: tuple[int, int]


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
    task: Literal["multiclass"] = "multiclass"
    salt_check: str = ""

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
        """int64 (N,), in sample order."""
        return np.array([sample.label for sample in self.samples], np.int64)

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
        """sha256 over classes and each sample's uid, label, split and group, in sample order."""
        hasher = hashlib.sha256(json.dumps(self.classes).encode())
        for sample, group in zip(self.samples, self.group_codes, strict=True):
            row = [sample.uid, sample.label, sample.split, int(group)]
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
        try:
            pixels = self.read(sample.path)
        except (OSError, UnreadableImageError) as error:
            raise DatasetError(
                f"an image of {self.name} can no longer be read.",
                file=sample.path,
                why=error,
                next="run again: it is then skipped, or read where it is back",
            ) from error
        if not unchanged:
            raise DatasetError(
                f"an image of {self.name} has changed since it was looked at.",
                file=sample.path,
                next="run again: it is then looked at anew",
            )
        return pixels

    def counts(self) -> dict[str, dict[str, int]]:
        """Split → class → number of samples."""
        return {
            split: {
                name: int(np.count_nonzero((self.splits == split) & (self.labels == label)))
                for label, name in enumerate(self.classes)
            }
            for split in SPLITS
        }
