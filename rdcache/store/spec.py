"""What a store consists of, as plain facts: taps, shards, layout, fingerprint, sample table."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from rdcache.errors import StoreFormatError

SPLITS = ("train", "val", "test")
# What became of a sample in a view; 0 is not extracted.
STORED = 1
NOT_FINITE = 2
TapKind = Literal["map2d", "map3d", "tokens", "vector", "logits"]
AXES: dict[str, tuple[str, ...]] = {
    "map2d": ("channel", "y", "x"),
    "map3d": ("channel", "z", "y", "x"),
    "tokens": ("token", "channel"),
    "vector": ("channel",),
    "logits": ("class",),
}
DTYPES = {"float16": 2, "bfloat16": 2, "float32": 4, "int8": 1}
CODECS = ("none", "zstd", "blosc")
SHARD_BYTES = 128 * 2**20
LARGEST_BYTES = 2**70  # beyond what any file system holds; numbers above it are attacks or slips
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
UID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class TapSpec:
    """One named tensor of a teacher, for one sample.

    Attributes:
        shape: without view and sample, channels first: (2048, 7, 7), tokens (196, 768), (768,).
        dtype: as stored: `float16`, `bfloat16`, `float32`, or `int8` with `scales` beside it.
        codec: how each sample is compressed, without loss: `none`, `zstd` or `blosc`.
        projected_from: how many channels the teacher gives, where fewer are stored: coordinates
            in a basis that the store holds.
    """

    name: str
    kind: TapKind
    shape: tuple[int, ...]
    dtype: str = "float16"
    codec: str = "none"
    projected_from: int | None = None

    def __post_init__(self) -> None:
        valid = (
            NAME.fullmatch(self.name)
            and self.name != "zarr.json"  # the metadata of the group the taps lie in
            and self.kind in AXES
            and len(self.shape) == len(AXES[self.kind])
            and all(isinstance(side, int) and side > 0 for side in self.shape)
            and self.dtype in DTYPES
            and self.codec in CODECS
            and self._projects_to_fewer()
        )
        if not valid:
            raise StoreFormatError("this is no description of a tap.", tap=self.to_dict())

    def _projects_to_fewer(self) -> bool:
        before = self.projected_from
        fewer = isinstance(before, int) and before > self.shape[self.channel_axis]
        return before is None or (fewer and self.kind != "logits")

    @property
    def channel_axis(self) -> int:
        """Which axis of `shape` counts channels."""
        return -1 if self.kind == "tokens" else 0

    @property
    def scales(self) -> TapSpec | None:
        """The companion of an int8 tap: what each channel of a sample is to be multiplied with.

        One float32 a channel; of a vector or logits one for the whole sample, as a scale for each
        number would be the number itself.
        """
        if self.dtype != "int8":
            return None
        single = len(self.shape) == 1
        count = 1 if single else self.shape[self.channel_axis]
        return TapSpec(f"{self.name}.scale", "vector", (count,), "float32")

    @property
    def nbytes(self) -> int:
        """Bytes of one sample of one view, before compression."""
        return DTYPES[self.dtype] * math.prod(self.shape)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """NumPy's dtype of the stored numbers; bfloat16, which NumPy lacks, as bits in uint16."""
        return np.dtype("uint16" if self.dtype == "bfloat16" else self.dtype)

    @property
    def axes(self) -> tuple[str, ...]:
        """Dimension names after view and sample; they carry the tap's name, so that xarray can
        hold taps of different sizes in one dataset.
        """
        return tuple(f"{self.name}_{axis}" for axis in AXES[self.kind])

    def to_dict(self) -> dict[str, Any]:
        """All attributes as JSON values."""
        values: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "shape": list(self.shape),
            "dtype": self.dtype,
        }
        if self.codec != "none":
            values["codec"] = self.codec
        if self.projected_from is not None:
            values["projected_from"] = self.projected_from
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TapSpec:
        """Read back what `to_dict` gave."""
        return cls(
            values["name"],
            values["kind"],
            tuple(values["shape"]),
            values["dtype"],
            values.get("codec", "none"),
            values.get("projected_from"),
        )


@dataclass(frozen=True)
class ShardRef:
    """The unit of writing: samples [start, stop) of one view, one object for each tap.

    Attributes:
        index: position of the shard along the sample axis.
    """

    view: int
    index: int
    start: int
    stop: int


@dataclass(frozen=True)
class StoreLayout:
    """How many samples, views and taps there are, and how they are cut into shards.

    Attributes:
        samples: how many samples the store has.
        extents: for each view, how many leading samples it covers: all of them for view 0, the
            training samples, which come first, for the others.
        shard_samples: samples in one shard, the same for all taps.
        findings: columns of a multi-label store's labels; 0 where a label is one class number.
    """

    samples: int
    extents: tuple[int, ...]
    taps: tuple[TapSpec, ...]
    shard_samples: int
    findings: int = 0

    def __post_init__(self) -> None:
        names = [tap.name for tap in self.taps]
        if not self.taps or len(set(names)) != len(names):
            raise StoreFormatError("a store needs taps of different names.", taps=names)
        counts = (self.samples, self.shard_samples, self.findings, *self.extents)
        if any(not isinstance(count, int) for count in counts):
            raise StoreFormatError("the counts of a store are whole numbers.", counts=counts)
        if not self.extents or self.shard_samples < 1 or self.samples < 1:
            raise StoreFormatError("a store needs at least one view and one sample.")
        if any(not 0 <= extent <= self.samples for extent in self.extents):
            raise StoreFormatError("a view covers more samples than there are.")
        if self.findings < 0:
            raise StoreFormatError("labels have no negative number of columns.")
        if any(tap.scales not in (None, *self.taps) for tap in self.taps):
            raise StoreFormatError("an int8 tap needs its scales beside it.", taps=names)
        if max(self.nbytes(), self.shard_samples) > LARGEST_BYTES:
            raise StoreFormatError("a store of this size cannot be meant.", bytes=self.nbytes())

    @classmethod
    def plan(
        cls,
        taps: Sequence[TapSpec],
        extents: Sequence[int],
        target_bytes: int = SHARD_BYTES,
        findings: int = 0,
    ) -> StoreLayout:
        """Choose the shard size: a power of two of samples, so that the largest tap's objects come
        near `target_bytes`, and no more than hold all samples.
        """
        largest = max(tap.nbytes for tap in taps)
        fitting = max(1, target_bytes // largest)
        needed = 1 << (max(extents) - 1).bit_length()
        return cls(
            samples=max(extents),
            extents=tuple(extents),
            taps=tuple(taps),
            shard_samples=min(1 << (fitting.bit_length() - 1), needed),
            findings=findings,
        )

    @property
    def public(self) -> tuple[TapSpec, ...]:
        """The taps that are asked for by name: all but the scales of others."""
        companions = {tap.scales for tap in self.taps}
        return tuple(tap for tap in self.taps if tap not in companions)

    @property
    def views(self) -> int:
        """How many views there are, the clean one included."""
        return len(self.extents)

    @property
    def shards_per_view(self) -> int:
        """Shards along the sample axis."""
        return -(-self.samples // self.shard_samples)

    @property
    def shard_count(self) -> int:
        """How many shards there are to write."""
        return sum(-(-extent // self.shard_samples) for extent in self.extents)

    def shard(self, view: int, index: int) -> ShardRef:
        """One shard, by its view and its position along the sample axis."""
        start = index * self.shard_samples
        return ShardRef(view, index, start, min(start + self.shard_samples, self.extents[view]))

    def shards(self) -> list[ShardRef]:
        """Every shard there is to write, view by view."""
        return [
            self.shard(view, index)
            for view, extent in enumerate(self.extents)
            for index in range(-(-extent // self.shard_samples))
        ]

    def nbytes(self) -> int:
        """Bytes of all tap tensors before compression, without indexes and checksums."""
        return sum(self.extents) * sum(tap.nbytes for tap in self.taps)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; the taps are the manifest's own entry."""
        return {
            "samples": self.samples,
            "extents": list(self.extents),
            "shard_samples": self.shard_samples,
            **({"findings": self.findings} if self.findings else {}),
        }


@dataclass(frozen=True)
class Fingerprint:
    """Named parts that together decide every stored number.

    Attributes:
        parts: part name → JSON value, such as `weights` → sha256 of the teacher's tensors.
    """

    parts: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """sha256 of the parts as canonical JSON, in hexadecimal digits."""
        return hashlib.sha256(_canonical(self.parts).encode()).hexdigest()

    def differences(self, other: Fingerprint) -> tuple[str, ...]:
        """Names of the parts that differ, sorted."""
        return tuple(
            name
            for name in sorted(self.parts.keys() | other.parts.keys())
            if _part(self.parts, name) != _part(other.parts, name)
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True)
class SampleTable:
    """The columns of a store's samples, ordered train, val, test.

    Attributes:
        uids: 32 hexadecimal digits each.
        labels: int64 (N,), class numbers; multi-label int64 (N, L), 0 or 1 for each finding.
        splits: `train`, `val` or `test` each.
        groups: int64 (N,), equal numbers for samples of one group, -1 for none.
    """

    uids: tuple[str, ...]
    labels: np.ndarray
    splits: tuple[str, ...]
    groups: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.uids)
        if not count == len(self.labels) == len(self.splits) == len(self.groups):
            raise StoreFormatError("the columns of a sample table differ in length.")
        if np.ndim(self.labels) not in (1, 2):
            raise StoreFormatError("labels are one number a sample, or one for each finding.")
        if any(not UID.fullmatch(uid) for uid in self.uids):
            raise StoreFormatError("a uid has 32 hexadecimal digits.")
        if set(self.splits) - set(SPLITS):
            raise StoreFormatError("a split is train, val or test.", splits=set(self.splits))
        ranks = [SPLITS.index(split) for split in self.splits]
        if ranks != sorted(ranks):
            raise StoreFormatError("samples are ordered train, val, test.")

    def columns(self) -> dict[str, np.ndarray]:
        """The arrays as they are stored: uids as (N, 16) bytes, splits as positions in SPLITS."""
        raw = b"".join(bytes.fromhex(uid) for uid in self.uids)
        return {
            "uid": np.frombuffer(raw, np.uint8).reshape(len(self.uids), 16),
            "label": np.asarray(self.labels, np.int64),
            "split": np.array([SPLITS.index(split) for split in self.splits], np.int8),
            "group": np.asarray(self.groups, np.int64),
        }


def _part(parts: Mapping[str, Any], name: str) -> str | None:
    """One part as canonical text; None where there is none, which is not a part that is null."""
    return _canonical(parts[name]) if name in parts else None


def _canonical(value: Any) -> str:
    """JSON text that is the same for equal values, whatever the order of their keys."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )
