"""Which taps of a teacher are put in place of which stages of a student, and what fits them in.

A tap is led through a projector of three convolutions (1×1, 3×3, 1×1) to the channels of the
student's stage and resized to its positions. The student runs on from there: see `hybrid.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from rdcache.errors import UsageError
from rdcache.losses.map_similarity import average_pooled
from rdcache.methods.base import MethodContext
from rdcache.methods.layers import batch_norm, convolution, resized
from rdcache.methods.stage_pairs import (
    SPATIAL,
    StagePair,
    maps_of,
    matched_stages,
    positions_of,
    stage_pair,
)

LEAST_WIDTH = 64  # channels inside a projector, also where the student's stage has fewer


class Projector(nn.Module):
    """A teacher's tap as a map that can stand in place of one of the student's.

    Convolutions run at the coarser positions of the two. Each is followed by batch norm, all but
    the last by ReLU: a student's map may be negative.

    Args:
        pair: tap and stage.
        width: channels inside; None for those of the student's stage, at least 64.
        feature_norm: whether the tap's channels are standardised.

    Attributes:
        pair: tap and stage.
        maps: folds the tap to maps.
    """

    def __init__(
        self, pair: StagePair, width: int | None, feature_norm: str, context: MethodContext
    ) -> None:
        super().__init__()
        self.pair = pair
        self.maps = maps_of(pair, feature_norm, context)
        inner = width or max(pair.student_channels, LEAST_WIDTH)
        dimensions = context.dimensions
        self.layers = nn.Sequential(
            convolution(dimensions, pair.teacher_channels, inner, 1),
            batch_norm(dimensions, inner),
            nn.ReLU(),
            convolution(dimensions, inner, inner, 3),
            batch_norm(dimensions, inner),
            nn.ReLU(),
            convolution(dimensions, inner, pair.student_channels, 1),
            batch_norm(dimensions, pair.student_channels),
        )

    def forward(self, maps: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """Project the teacher's maps (B, C_t, *positions) to (B, C_s, *size)."""
        coarse = [min(sides) for sides in zip(maps.shape[2:], size, strict=True)]
        return resized(self.layers(average_pooled(maps, coarse)), size)


def injected_pairs(
    pairs: str | None, count: int | None, deepest: str | None, context: MethodContext
) -> tuple[StagePair, ...]:
    """Choose what is injected where, shallow to deep.

    They are matched by stride or by name (`matched_stages`). If neither agrees, the taps that have
    positions are put in the order of their resolution, and the deepest ones belong to the deepest
    stages.

    Args:
        pairs: as the option has them, `tap:stage` with commas between.
        count: how many, the deepest; None for all that can be matched.
        deepest: the tap whose branch stands in place of the deepest stage anyway, which is not
            matched again. None where there is no such branch.

    Raises:
        UsageError: a stage that cannot be replaced or is named twice, or too little to match.
        UnknownNameError: the store has no such tap.
    """
    injectable = () if context.student is None else context.student.injectable
    if pairs is not None:
        return _named_pairs(pairs, injectable, context)
    if count == 0:
        return ()
    free = injectable if deepest is None else injectable[:-1]
    matched = [
        (tap, stage)
        for tap, stage in matched_stages(free, context)
        if context.taps[tap].kind in SPATIAL
    ] or _by_depth(free, deepest, context)
    if not matched or (count is not None and len(matched) < count):
        raise UsageError(
            "no tap can stand in place of a stage of the student."
            if not matched
            else f"{count} taps are wanted for stages of the student, and {len(matched)} fit.",
            taps=", ".join(context.taps),
            stages=", ".join(free) or "none that can be replaced",
            next="rdcache extract … --taps s1,s2,s3,s4, or --set pairs=TAP:STAGE,…"
            + ("" if deepest is None else ", or --set stages=1, RD's branch alone"),
        )
    return tuple(
        stage_pair(tap, stage, context)
        for tap, stage in (matched if not count else matched[-count:])
    )


def _named_pairs(
    pairs: str, injectable: Sequence[str], context: MethodContext
) -> tuple[StagePair, ...]:
    """Pairs as the option lists them, in the order of the student's stages."""
    listed = [tuple(part.strip() for part in pair.split(":")) for pair in pairs.split(",")]
    if any(len(pair) != 2 or not all(pair) for pair in listed):
        raise UsageError("pairs are TAP:STAGE with commas between, as in s2:s2,s3:s3.", got=pairs)
    by_stage = {stage: tap for tap, stage in listed}
    if len(by_stage) < len(listed) or not set(by_stage) <= set(injectable):
        raise UsageError(
            "each pair names another stage of the student that can be replaced.",
            got=pairs,
            stages=", ".join(injectable) or "none that can be replaced",
        )
    return tuple(
        stage_pair(by_stage[stage], stage, context) for stage in injectable if stage in by_stage
    )


def _by_depth(
    stages: Sequence[str], deepest: str | None, context: MethodContext
) -> list[tuple[str, str]]:
    taps = [tap for tap in context.taps.values() if tap.kind in SPATIAL and tap.name != deepest]
    positions = {tap.name: positions_of(tap, context) for tap in taps}
    names = [
        name for name in sorted(positions, key=lambda it: -positions[it]) if positions[name] > 1
    ]
    count = min(len(names), len(stages))
    return list(zip(names[len(names) - count :], stages[len(stages) - count :], strict=True))
