"""Which of a student's stages are compared with which taps of its teacher."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from rdcache.errors import UsageError
from rdcache.methods.base import MethodContext
from rdcache.methods.layers import batch_norm, convolution
from rdcache.methods.teacher_maps import TeacherMaps, map_shape
from rdcache.store import TapSpec

CANONICAL = ("s1", "s2", "s3", "s4")


@dataclass(frozen=True)
class StagePair:
    """A tap of the teacher and the stage of the student that is compared with it.

    Attributes:
        student_channels: channels of the student's map.
        teacher_channels, teacher_sides: of the tap, folded to a map; sides are (H, W), of volumes
            (D, H, W).
    """

    tap: TapSpec
    stage: str
    student_channels: int
    teacher_channels: int
    teacher_sides: tuple[int, ...]

    @property
    def teacher_positions(self) -> int:
        """How many positions the tap has."""
        return math.prod(self.teacher_sides)


def stage_pairs(names: Sequence[str] | None, context: MethodContext) -> tuple[StagePair, ...]:
    """Pair taps and stages of one name.

    Args:
        names: by default those of s1 to s4 that both sides have.

    Raises:
        UsageError: there is nothing to pair, or the student lacks a stage that is asked for.
        UnknownNameError: the store lacks one.
    """
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
    return tuple(stage_pair(name, name, context) for name in names)


def stage_pair(tap: str, stage: str, context: MethodContext) -> StagePair:
    """Pair a tap and a stage.

    Raises:
        UsageError: the student has no such stage.
        UnknownNameError: the store has no such tap.
    """
    spec = context.tap(tap)
    if stage not in context.student_stages:
        raise UsageError(
            f"the student has no stage {stage!r}.", has=", ".join(context.student_stages)
        )
    channels, *sides = map_shape(spec, context.dimensions)
    return StagePair(spec, stage, context.student_stages[stage][0], channels, tuple(sides))


def maps_of(pair: StagePair, feature_norm: str, context: MethodContext) -> TeacherMaps:
    """What folds the pair's tap, and standardises it if that is asked for."""
    statistics = context.statistics_for(feature_norm, pair.tap.name)
    return TeacherMaps(pair.tap, statistics, context.dimensions)


def connector(inputs: int, outputs: int, dimensions: int = 2) -> nn.Sequential:
    """1×1 convolution and batch norm: a linear map of channels, the same at every position."""
    return nn.Sequential(
        convolution(dimensions, inputs, outputs, 1), batch_norm(dimensions, outputs)
    )
