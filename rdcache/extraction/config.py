"""What `rdcache extract` can be told: one class for the Python call, the flags and the recipes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
)

from rdcache.data import salt_of_environment
from rdcache.extraction.shared_options import (
    DropLeaksOption,
    FitOption,
    KeepPathsOption,
    RootOption,
    SaltOption,
    SplitSeedOption,
    ValFractionOption,
    WeightsOption,
)
from rdcache.store.signatures import required_signature

LOCAL_WORKERS = r"local:([1-9]\d{0,3})"
SCHEDULER_ADDRESS = r"(tcp|tls)://\S+:\d+"


def _words(value: Any) -> Any:
    """`s4=int8,pooled=float16`, or a mapping from taps to values, as (`s4=int8`, …)."""
    if isinstance(value, Mapping):
        return tuple(f"{tap}={its}" for tap, its in value.items())
    if isinstance(value, str | int):
        return tuple(word.strip() for word in str(value).split(",") if word.strip())
    return value


def _along_each_axis(value: Any) -> Any:
    """`96` as (96, 96, 96), along z, y and x."""
    if value is None:
        return None
    values = value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)
    if len(values) not in (1, 3):
        raise ValueError("one number, or three along z, y and x")
    return tuple(values) * 3 if len(values) == 1 else tuple(values)


def _above_0(value: Any) -> Any:
    if value is not None and min(value) <= 0:
        raise ValueError("each of the three is more than 0")
    return value


PerTap = Annotated[tuple[str, ...], BeforeValidator(_words)]
Patch = Annotated[
    tuple[int, int, int] | None, BeforeValidator(_along_each_axis), AfterValidator(_above_0)
]
VoxelSpacing = Annotated[
    tuple[float, float, float] | None, BeforeValidator(_along_each_axis), AfterValidator(_above_0)
]


class ExtractConfig(BaseModel):
    """Options of phase 1. Field descriptions are the help texts of the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: str = Field(description="Name of the teacher; see `rdcache list teachers`.")
    dataset: str = Field(description="Name of the dataset; see `rdcache list datasets`.")
    taps: tuple[str, ...] = Field(
        default=(),
        description="Taps to keep, comma-separated (default: the teacher's default tap; of images "
        "also the coarsest map that is finer, which RD reads; and `pooled`; each where the "
        "teacher has it).",
    )
    views: str = Field(
        default="8",
        description="Views of each training image: clean, flip, d4, or a number K of crops that "
        "counts the clean view. Validation and test images get the clean view only.",
    )
    fit: FitOption = "squash"
    patch: Patch = Field(
        default=None,
        description="Of volumes: cut boxes of this many voxels along z,y,x (one number: along "
        "all), without resampling (default: whole volumes and crops, resized; for segmentation "
        "the teacher's own).",
    )
    stride: int = Field(
        default=1,
        gt=0,
        description="Of volumes: the corners of patches are multiples of so many voxels.",
    )
    spacing: VoxelSpacing = Field(
        default=None,
        description="Of volumes: resample them first to so many millimetres along z,y,x (one "
        "number: along all; default: as they are).",
    )
    slices: int | None = Field(
        default=None,
        gt=0,
        description="Of volumes, for a teacher of images: it sees every how manieth slice "
        "(default: each).",
    )
    dtype: PerTap = Field(
        default=("float16",),
        description="Stored number format: float16, bfloat16, float32, or int8 with a scale for "
        "each sample and channel; for all taps, or as TAP=FORMAT. A tap that overflows float16 is "
        "kept in float32.",
    )
    codec: PerTap = Field(
        default=("none",),
        description="Lossless compression: none, zstd (smallest) or blosc (fastest); for all taps, "
        "or as TAP=CODEC. A store that is there keeps its own.",
    )
    pool: PerTap = Field(
        default=(),
        description="Pool a map to fewer positions by adaptive averages, as s4=4 or s4=4x6.",
    )
    project: PerTap = Field(
        default=(),
        description="Project a tap's channels onto the first principal directions, as s4=256; the "
        "basis is kept in the store.",
    )
    precision: Literal["float32", "bfloat16", "auto"] = Field(
        default="float32",
        description="Arithmetic of the teacher's forward pass; auto: that of the store where one "
        "is begun, else bfloat16 on a GPU that has it, and on a CPU where it is at least 1.2 times "
        "as fast, which is measured once, uncompiled also with --compile. Where several machines "
        "--join, give all of them float32 or bfloat16: auto may come to another on each.",
    )
    compile: bool = Field(
        default=False,
        description="Compile the teacher (torch.compile): a minute first, faster from then on. "
        "Last bits may differ; wants a C++ compiler.",
    )
    weights: WeightsOption = None
    seed: SplitSeedOption = 0
    val_fraction: ValFractionOption = 0.15
    drop_leaks: DropLeaksOption = False
    strict: bool = Field(
        default=False, description="Fail on an unreadable image instead of skipping it."
    )
    keep_paths: KeepPathsOption = False
    uid_salt: SaltOption = Field(default_factory=salt_of_environment)
    batch_size: int = Field(
        default=32, gt=0, description="Images per forward pass (of volumes, by default 2)."
    )
    join: bool = Field(
        default=False,
        description="Where another process extracts the same store, work on other shards of it "
        "instead of waiting.",
    )
    scheduler: str | None = Field(
        default=None,
        description="Work on several machines or processes: the address of a Dask scheduler, as "
        "in tcp://host:8786, or local:N for N processes on this machine (default: this process "
        "alone).",
    )
    who: str | None = Field(
        default_factory=lambda: os.environ.get("RDCACHE_WHO"),
        description="Your name for colleagues who see this store or wait for it (default: "
        "RDCACHE_WHO, else none).",
    )
    device: str = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps.")
    root: RootOption = None
    data_dir: Path | None = Field(
        default=None,
        description="Where datasets and weights are looked for (default: RDCACHE_DATA, else "
        "`data`).",
    )
    require_signature: Path | None = Field(
        default_factory=required_signature,
        description="Public key (PEM): copy tensors only from stores that are signed by it "
        "(default: RDCACHE_REQUIRE_SIGNATURE, else none).",
    )

    @field_validator("scheduler")
    @classmethod
    def _is_scheduler(cls, value: str | None) -> str | None:
        if value is None or re.fullmatch(f"{LOCAL_WORKERS}|{SCHEDULER_ADDRESS}", value):
            return value
        raise ValueError("should be an address like tcp://host:8786, or local:N")
