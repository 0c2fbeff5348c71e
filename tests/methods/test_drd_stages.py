"""DRD: which taps are injected where, and what cannot be."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rdcache.errors import UnknownNameError, UsageError
from rdcache.store import TapSpec
from tests.methods.drd_case import (
    CHANNELS,
    IMAGES_AND_VOLUMES,
    Case,
)
from tests.methods.small_students import WIDTHS


@IMAGES_AND_VOLUMES
@pytest.mark.parametrize("task", ["multiclass", "segmentation"])
@pytest.mark.parametrize("kind", ["map", "tokens", "tokens with a class token"])
def test_any_tap_with_positions_fits_any_stage(task: str, dimensions: int, kind: str) -> None:
    case = Case(task, dimensions, batch=4)
    positions = 2**dimensions if task == "segmentation" else 3**dimensions
    side = 2 if task == "segmentation" else 3
    tap = TapSpec("x", "map3d" if dimensions == 3 else "map2d", (CHANNELS, *(side,) * dimensions))
    if kind != "map":
        tap = TapSpec("x", "tokens", (positions + kind.endswith("a class token"), CHANNELS))
    taps = {"x": tap, "last": TapSpec("last", "vector", (CHANNELS,))}
    case = Case(task, dimensions, batch=4, taps=taps, default_tap="last")
    method = case.drd(pairs="x:s1", cka_mode="positions", cka_weight=0.5)
    assert method.projectors[0].pair.teacher_sides == (side,) * dimensions
    output = case.output(method)
    maps = method.projectors[0].maps(torch.randn(4, *tap.shape).half())
    size = output.stages["s1"].shape
    assert method.projectors[0](maps, size[2:]).shape == size


def test_taps_of_other_names_are_matched_from_the_deepest_up() -> None:
    taps = {
        name: TapSpec(name, "map2d", (CHANNELS, side, side))
        for name, side in (("deep", 2), ("fine", 9), ("middle", 5))
    }
    seg = Case("segmentation", taps=taps, default_tap="deep").drd()
    assert [(it.pair.tap.name, it.pair.stage) for it in seg._projectors()] == [
        ("fine", "s1"),
        ("middle", "s2"),
        ("deep", "s3"),
    ]
    cls = Case(taps=taps, default_tap="deep").drd()
    assert [(it.pair.tap.name, it.pair.stage) for it in cls._projectors()] == [
        ("fine", "s1"),
        ("middle", "s2"),
    ]


def test_pyramids_are_matched_by_stride_and_transformers_by_depth() -> None:
    strides = {name: (channels, 2 ** (i + 1)) for i, (name, channels) in enumerate(WIDTHS.items())}
    pyramid = {
        name: TapSpec(name, "map2d", (CHANNELS, side, side))
        for name, side in (("stride2", 12), ("s1", 6), ("s2", 3))
    }
    depths = {name: TapSpec(name, "map2d", (CHANNELS, 4, 4)) for name in ("s1", "s2", "s3")}
    for taps, expected in (
        (pyramid, {"s1": "stride2", "s2": "s1", "s3": "s2"}),
        (depths, {"s1": "s1", "s2": "s2", "s3": "s3"}),
    ):
        method = Case("segmentation", taps=taps, student_stages=strides).drd()
        pairs = {it.pair.stage: it.pair.tap.name for it in method._projectors()}
        assert pairs == expected


def test_stages_are_the_deepest_of_those_that_can_be_matched() -> None:
    case, seg = Case(), Case("segmentation")
    assert [it.pair.stage for it in case.drd(stages=2)._projectors()] == ["s2"]
    assert [it.pair.stage for it in seg.drd(stages=2)._projectors()] == ["s2", "s3"]
    assert [it.pair.stage for it in seg.drd(pairs="s1:s3, s3:s1")._projectors()] == ["s1", "s3"]
    with pytest.raises(UsageError, match="3 taps are wanted for stages of the student, and 2 fit"):
        case.drd(stages=4)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"pairs": "s1"}, UsageError, "TAP:STAGE"),
        ({"pairs": "s1:s9"}, UsageError, "another stage of the student"),
        ({"pairs": "s1:s2,s2:s2"}, UsageError, "another stage of the student"),
        ({"pairs": "s7:s2"}, UnknownNameError, "s7"),
        ({"pairs": "s1:s2", "stages": 2}, UsageError, "stages or pairs"),
    ],
)
def test_pairs_that_cannot_be_are_refused(
    options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        Case().drd(**options)


def test_a_store_with_one_tap_is_for_rd() -> None:
    taps = {"s3": TapSpec("s3", "map2d", (CHANNELS, 3, 3))}
    with pytest.raises(UsageError, match=r"no tap can stand in[\s\S]*stages=1, RD's branch alone"):
        Case(taps=taps).drd()
    assert Case(taps=taps).drd(stages=1).hybrids is None


@IMAGES_AND_VOLUMES
def test_masks_come_in_batches_of_two(dimensions: int) -> None:
    case = Case("segmentation", dimensions, batch=2)
    for mode in ("auto", "positions", "patch"):
        terms = case.terms(case.drd(cka_mode=mode))
        case.student.zero_grad()
        terms["cka_s2"].backward()
        assert case.student.segments["s2"][0].weight.grad.abs().sum() > 0
    with pytest.raises(UsageError, match=r"batch of 2 is too small[\s\S]*cka_mode=positions"):
        case.drd(cka_mode="pooled")


@pytest.mark.parametrize(
    ("sides", "options", "said"),
    [
        ((16, 16, 16), {}, r"at s3 a batch has 2 of them[\s\S]*1×1×1 at s3[\s\S]*--patch"),
        ((32, 32, 32), {"cka_mode": "patch", "cka_patches": 1}, "at s1 a batch has 2"),
    ],
)
def test_patches_too_small_for_cka_are_refused_when_the_method_is_built(
    sides: tuple[int, ...], options: dict[str, Any], said: str
) -> None:
    case = Case("segmentation", 3, batch=2, sides=sides)
    with pytest.raises(UsageError, match=said):
        case.drd(**options)
    case.drd(**{**options, "cka_weight": 0})
    Case("segmentation", 3, batch=2, sides=(32, 32, 32)).drd()
    Case("segmentation", 3, batch=4, sides=(16, 16, 16)).drd()


def test_classifiers_of_small_batches_compare_positions_too() -> None:
    case = Case(dimensions=3, batch=2)
    with pytest.raises(UsageError, match="too small"):
        case.drd()
    method = case.drd(cka_mode="positions")
    terms = case.terms(method)
    assert {"cka", "cka_s1", "cka_s2"} <= terms.keys()
    terms["cka"].backward()
    assert case.student.segments["s3"][0].weight.grad.abs().sum() > 0
    with pytest.raises(UsageError, match="no positions of its own"):
        case.drd(cka_mode="positions", cka_target="reprogrammed")
