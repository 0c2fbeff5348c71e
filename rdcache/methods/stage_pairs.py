"""Which of a student's stages are compared with which taps of its teacher."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
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
    return _by_stride(stages, context) or _by_name(stages, context)


def _by_stride(stages: Sequence[str], context: MethodContext) -> list[tuple[str, str]]:
    """Where taps have unlike numbers of positions and stages unlike strides; else nothing."""
    strides = {stage: context.student_stages[stage][1] for stage in stages}
    taps = [context.taps[tap] for tap in map(context.tap_of_teacher, STRIDES.values()) if tap]
    sizes = {positions_of(tap, context) for tap in taps if tap.kind in SPATIAL}
    if len(sizes) < 2 or len(set(strides.values())) < 2:
        return []
    return _with_positions(
        ((STRIDES[stride], stage) for stage, stride in strides.items() if stride in STRIDES),
        context,
    )


def _by_name(stages: Sequence[str], context: MethodContext) -> list[tuple[str, str]]:
    return _with_positions(zip(stages, stages, strict=True), context)


def _with_positions(
    pairs: Iterable[tuple[str, str]], context: MethodContext
) -> list[tuple[str, str]]:
    """Those pairs of a tap and a stage whose tap the store has, as a map or as tokens."""
    found = ((context.tap_of_teacher(name), stage) for name, stage in pairs)
    return [(tap, stage) for tap, stage in found if tap and context.taps[tap].kind in SPATIAL]


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
