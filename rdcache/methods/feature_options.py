"""Options of the methods that compare features: which of them, and on what scale."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rdcache.methods.baseline import BaselineConfig

LAST = "s4"
FeatureNorm = Literal["none", "channel"]
RawFeatures = Annotated[
    FeatureNorm,
    Field(
        description="Standardise each channel of the tap by its mean and standard deviation over "
        "the training samples; none, as published: the loss does not depend on its scale."
    ),
]


class FeatureConfig(BaselineConfig):
    """Options of methods that compare features; without it, those whose loss is a squared error
    would weigh each teacher by the size of its activations.
    """

    feature_norm: FeatureNorm = Field(
        default="channel",
        description="Standardise each channel of a tap by its mean and standard deviation over "
        "the training samples.",
    )


class MapConfig(FeatureConfig):
    """Options of methods that compare one map of the teacher with one of the student."""

    tap: str | None = Field(
        default=None, description="Tap that is read (default: the teacher's default tap)."
    )
    stage: str = Field(default=LAST, description="Stage of the student that is compared with it.")


class ScaleFreeStagesConfig(BaselineConfig):
    """Options of methods that compare several maps of the teacher with as many of the student, and
    do not see the scale of a channel.
    """

    stages: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Stages that are compared with the taps of these names, as in [s3, s4] "
        "(default: s1 to s4 of the student, with what the store has of the same stride or name).",
    )


class StagesConfig(ScaleFreeStagesConfig, FeatureConfig):
    """Options of methods that compare several maps of the teacher with as many of the student."""
