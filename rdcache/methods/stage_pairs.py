"""Which of a student's stages are compared with which taps of its teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import nn

from rdcache.errors import UsageError
from rdcache.methods.base import MethodContext
from rdcache.methods.baseline import BaselineConfig
from rdcache.methods.teacher_maps import TeacherMaps, map_shape
from rdcache.store import TapSpec

CANONICAL = ("s1", "s2", "s3", "s4")
LAST = "s4"


class FeatureConfig(BaselineConfig):
    """Options of methods that compare features; without it, those whose loss is a squared error
    would weigh each teacher by the size of its activations.
    """

    feature_norm: Literal["none", "channel"] = Field(
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


class StagesConfig(FeatureConfig):
    """Options of methods that compare several maps of the teacher with as many of the student."""

    stages: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="Stages that are compared, as in [s3, s4] (default: those of s1 to s4 that "
        "the store holds and the student has).",
    )


@dataclass(frozen=True)
class StagePair:
    """A tap of the teacher and the stage of the student that is compared with it.

    Attributes:
        student_channels: channels of the student's map.
        teacher_channels, teacher_height, teacher_width: of the tap, folded to a map.
    """

    tap: TapSpec
    stage: str
    student_channels: int
    teacher_channels: int
    teacher_height: int
    teacher_width: int


def stage_pairs(config: StagesConfig, context: MethodContext) -> tuple[StagePair, ...]:
    """Pair taps and stages of one name.

    Raises:
        UsageError: there is nothing to pair, or the student lacks a stage that is asked for.
        UnknownNameError: the store lacks one.
    """
    names = config.stages
    if names is None:
        both = context.taps.keys() & context.student_stages.keys()
        names = tuple(name for name in CANONICAL if name in both)
    if not names:
        raise UsageError(
            "the store and the student have no stage in common.",
            store=", ".join(context.taps),
            student=", ".join(context.student_stages),
            next="rdcache extract … --taps s1,s2,s3,s4,pooled",
        )
    return tuple(_pair(name, name, context) for name in names)


def map_pair(config: MapConfig, context: MethodContext) -> StagePair:
    """Pair the one tap and the one stage that a config names.

    Raises:
        UsageError: the student has no such stage.
        UnknownNameError: the store has no such tap.
    """
    return _pair(context.tap(config.tap).name, config.stage, context)


def teacher_maps(pair: StagePair, feature_norm: str, context: MethodContext) -> TeacherMaps:
    """What folds the pair's tap, and standardises it if that is asked for."""
    statistics = context.statistics(pair.tap.name) if feature_norm == "channel" else None
    return TeacherMaps(pair.tap, statistics)


def connector(inputs: int, outputs: int) -> nn.Sequential:
    """1×1 convolution and batch norm: a linear map of channels, the same at every position."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


def _pair(tap: str, stage: str, context: MethodContext) -> StagePair:
    spec = context.tap(tap)
    if stage not in context.student_stages:
        raise UsageError(
            f"the student has no stage {stage!r}.", has=", ".join(context.student_stages)
        )
    return StagePair(spec, stage, context.student_stages[stage][0], *map_shape(spec))
