"""What `rdcache rank` can be told: one class for the Python call and the flags."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from rdcache.extraction.shared_options import RootOption
from rdcache.store.signatures import required_signature


class RankConfig(BaseModel):
    """Options of a ranking. Field descriptions are the help texts of the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str = Field(description="The dataset whose stores are compared; see `list stores`.")
    teachers: tuple[str, ...] = Field(
        default=(), description="Compare these teachers, comma-separated (default: all)."
    )
    taps: tuple[str, ...] = Field(
        default=(), description="Compare these taps, comma-separated (default: all)."
    )
    max_samples: int = Field(
        default=5_000,
        ge=10,
        description="Of larger splits, so many images are looked at, classes in proportion.",
    )
    root: RootOption = None
    require_signature: Path | None = Field(
        default_factory=required_signature,
        description="Refuse stores that are not signed by this public key (default: "
        "RDCACHE_REQUIRE_SIGNATURE, else none).",
    )
