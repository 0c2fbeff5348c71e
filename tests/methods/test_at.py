"""Attention transfer as a method: which maps it compares, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.methods import (
    CachedBatch,
    ChannelStatistics,
    MethodContext,
    TrainingProgress,
    create_method,
)
from rdcache.models import StudentOutput
from rdcache.store import TapSpec

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
START = TrainingProgress(epoch=0, epochs=10)


def attention(maps: torch.Tensor) -> torch.Tensor:
    energy = (maps.double() ** 2).sum(1).flatten(1)
    return energy / energy.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_it_compares_raw_maps_of_all_common_stages_at_the_coarser_grid(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput, classes: int
) -> None:
    setting = context(
        num_classes=classes,
        classifier=torch.nn.Linear(12, classes),
        task_loss=torch.nn.functional.cross_entropy,
        statistics=lambda name: ChannelStatistics(torch.ones(16), torch.full((16,), 9.0)),
    )
    batch = CachedBatch(batch.samples, batch.taps, batch.target % classes)
    method = create_method("at", {"weight": 10.0}, setting)
    assert set(method.taps) == set(method.student_stages) == {"s3", "s4"}
    student = student_output(setting)
    terms = method(batch, student, START)
    assert terms.keys() == {"ce", "at"}
    expected = 0.0
    for stage, side in (("s3", 4), ("s4", 2)):
        theirs = F.adaptive_avg_pool2d(batch.taps[stage].double(), side)
        difference = attention(student.stages[stage]) - attention(theirs)
        expected += (difference**2).mean().item()
    assert terms["at"].item() == pytest.approx(10 * expected, rel=1e-4)
    terms["at"].backward()
    assert all(student.stages[stage].grad is not None for stage in ("s3", "s4"))
    assert not list(method.trainable_parameters("student"))


def test_a_tap_of_one_position_is_refused(context: BuildContext) -> None:
    setting = context(taps={"s4": TapSpec("s4", "vector", (16,))})
    with pytest.raises(UsageError, match="compares positions"):
        create_method("at", {}, setting)


def test_stages_and_taps_of_one_stride_are_compared_where_names_disagree(
    context: BuildContext,
) -> None:
    sides = {"stride2": 12, "s1": 6, "s2": 3}
    setting = context(
        taps={name: TapSpec(name, "map2d", (16, side, side)) for name, side in sides.items()},
        default_tap="s2",
        student_stages={"s1": (10, 2), "s2": (10, 4), "s3": (10, 8), "s4": (12, 16)},
    )
    method = create_method("at", {}, setting)
    assert [(pair.tap.name, pair.stage) for pair in method.pairs] == [
        ("stride2", "s1"),
        ("s1", "s2"),
        ("s2", "s3"),
    ]


def test_a_store_without_maps_of_stages_is_refused(context: BuildContext) -> None:
    setting = context(taps={"pooled": TapSpec("pooled", "vector", (16,))}, default_tap="pooled")
    with pytest.raises(UsageError, match="no stage in common"):
        create_method("at", {}, setting)
