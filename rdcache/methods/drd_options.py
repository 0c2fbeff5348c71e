"""Options of deep reprogramming distillation; the defaults are the recommended preset."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rdcache.methods.hybrid import NormMode
from rdcache.methods.rd_options import RDConfig

CKAMode = Literal["auto", "pooled", "positions", "patch"]


class DRDConfig(RDConfig):
    """Options of DRD: those of RD, which the deepest stage of a classifier follows, and its own."""

    finer_tap: bool = Field(
        default=False, description="As in rd, for the branch beside the deepest stage."
    )
    spatial: Literal["map", "pooled"] = Field(
        default="pooled", description="Reprogram the map and pool after, or pool the tap first."
    )
    map_side: int | None = Field(
        default=None, ge=1, description="As in rd, for the branch beside the deepest stage."
    )
    width: int | None = Field(
        default=256,
        ge=4,
        description="Channels inside the blocks; null for the student's feature width.",
    )
    stages: int | None = Field(
        default=None,
        ge=1,
        description="Stages in which the teacher stands in for the student, the deepest ones; 1 is "
        "rd where samples are classified (default: all that the store has taps for).",
    )
    pairs: str | None = Field(
        default=None,
        description="Which tap stands in for which stage, as in s2:s2,s3:s3; beside RD's own "
        "branch where samples are classified (default: those of one name).",
    )
    projector_width: int | None = Field(
        default=None,
        ge=1,
        description="Channels inside a projector (default: those of the student's stage, at least "
        "64).",
    )
    stage_weight: float = Field(
        default=1.0,
        gt=0,
        description="Weight of the terms of each stage but the deepest, relative to it.",
    )
    hybrid_bn: NormMode = Field(
        default="batch",
        description="Batch norms of the student in passes from a teacher's map: statistics of the "
        "batch, running ones left alone; the same with weights of its own for each stage; or "
        "shared, as if it were the student's own pass.",
    )
    hybrid_train_student_tail: bool = Field(
        default=True, description="Whether those passes train the student's weights too."
    )
    cka_mode: CKAMode = Field(
        default="auto",
        description="What CKA compares: maps averaged over positions, positions of the whole "
        "batch, or the cells of a coarse grid; auto: positions for masks, else averages.",
    )
    cka_positions: int = Field(
        default=1024, ge=8, description="Positions of a batch that cka_mode=positions draws."
    )
    cka_grid: int | None = Field(
        default=None,
        ge=2,
        description="Most positions along an axis that they are drawn from (default: 16, of "
        "volumes 8).",
    )
    cka_balanced: bool = Field(
        default=True, description="Draw half of them from the foreground, where there are masks."
    )
    cka_patches: int = Field(
        default=4, ge=1, description="Cells along an axis that cka_mode=patch compares."
    )
    kl_balanced: bool = Field(
        default=False,
        description="Where there are masks: half of the KL term is of the foreground's positions.",
    )
    kl_positions: int | None = Field(
        default=None,
        ge=1,
        description="Where there are masks: positions of a batch that the KL term draws (default: "
        "all).",
    )

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> DRDConfig:
        if self.stages is not None and self.pairs is not None:
            raise ValueError("stages or pairs: one of them says what is injected")
        return self
