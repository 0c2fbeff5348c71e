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
SPATIAL = ("map2d", "map3d", "tokens")
STRIDES = {1: "stride1", 2: "stride2", 4: "s1", 8: "s2", 16: "s3", 32: "s4"}  # of pyramids' taps


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
    """Pair taps and stages of one name, or those of one stride.

    Args:
        names: of both; by default the student's s1 to s4 are matched with what the store has.

    Raises:
        UsageError: there is nothing to pair, or the student lacks a stage that is asked for.
        UnknownNameError: the store lacks one.
    """
    if names is None:
        stages = [name for name in CANONICAL if name in context.student_stages]
        pairs = matched_stages(stages, context)
    else:
        pairs = [(name, name) for name in names]
    if not pairs:
        raise UsageError(
            "the store and the student have no stage in common.",
            store=", ".join(context.taps),
            student=", ".join(context.student_stages),
            next="rdcache extract … --taps s1,s2,s3,s4,pooled",
        )
    return tuple(stage_pair(tap, stage, context) for tap, stage in pairs)


def matched_stages(stages: Sequence[str], context: MethodContext) -> list[tuple[str, str]]:
    """Which taps belong to these stages of the student, as (tap, stage).

    Where both are pyramids, those of one stride do; `s1` to `s4` are taps of strides 4 to 32, and
    `s1` of a `unet3d` is a stage of stride 2. Otherwise those of one name do, which are quarter
    depths of a transformer.
    """
    names = {stage: stage for stage in stages}
    if _are_pyramids(stages, context):
        strides = {stage: context.student_stages[stage][1] for stage in stages}
        names = {stage: STRIDES[it] for stage, it in strides.items() if it in STRIDES}
    found = ((context.tap_of_teacher(name), stage) for stage, name in names.items())
    return [(tap, stage) for tap, stage in found if tap]


def _are_pyramids(stages: Sequence[str], context: MethodContext) -> bool:
    """Whether taps have unlike numbers of positions, stages unlike strides, and some agree."""
    strides = {context.student_stages[stage][1] for stage in stages}
    taps = {stride: context.tap_of_teacher(name) for stride, name in STRIDES.items()}
    maps = {stride: context.taps[tap] for stride, tap in taps.items() if tap}
    sizes = {
        stride: positions_of(tap, context) for stride, tap in maps.items() if tap.kind in SPATIAL
    }
    return len(set(sizes.values())) > 1 and len(strides) > 1 and bool(strides & sizes.keys())


def positions_of(tap: TapSpec, context: MethodContext) -> int:
    """How many positions a tap has: H·W, of volumes D·H·W."""
    return math.prod(map_shape(tap, context.dimensions)[1:])


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
