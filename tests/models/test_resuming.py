"""Running a student on from a replaced stage: the way DRD's hybrid outputs are computed."""

from __future__ import annotations

import pytest
import torch

from rdcache.errors import UnknownNameError, UsageError
from rdcache.models import Student, create_student, list_students

STUDENTS = [card.name for card in list_students()]
# One of each kind: backward passes take long.
KINDS = ["shufflenet-x0.5", "vit-tiny", "unet-shufflenet-x0.5", "unet-vit-tiny", "unet3d"]


def inputs_of(student: Student) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    sides = [32] * student.dimensions
    return torch.randn(2, student.channels, *sides, generator=generator)


@pytest.mark.parametrize("name", STUDENTS)
def test_a_student_resumed_from_its_own_stage_is_its_forward_pass(name: str) -> None:
    student = create_student(name, 3).eval()
    assert student.injectable == ("s1", "s2", "s3", "s4")
    with torch.no_grad():
        output = student(inputs_of(student), tuple(student.stages))
        for stage in student.stages:
            resumed = student.resume(stage, output.stages[stage], output.stages)
            assert torch.equal(resumed.logits, output.logits)
            assert torch.equal(resumed.features, output.features)
            assert all(torch.equal(resumed.stages[s], output.stages[s]) for s in resumed.stages)
            assert next(iter(resumed.stages)) == stage


@pytest.mark.parametrize("name", KINDS)
def test_gradients_of_resumed_logits_reach_the_injected_map_and_what_is_behind_it(
    name: str,
) -> None:
    student = create_student(name, 3)
    output = student(inputs_of(student), tuple(student.stages))
    own = {stage: maps.detach() for stage, maps in output.stages.items()}
    chain = student.backbone.chain
    for stage in student.injectable:
        student.zero_grad()
        injected = torch.randn_like(own[stage]).requires_grad_()
        student.resume(stage, injected, own).logits.square().sum().backward()
        assert injected.grad is not None
        assert injected.grad.abs().sum() > 0
        passed = tuple(f"backbone.segments.{s}." for s in chain[: chain.index(stage) + 1])
        for parameter_name, parameter in student.named_parameters():
            is_behind = not parameter_name.startswith(passed)
            assert (parameter.grad is not None) == is_behind, (stage, parameter_name)


def test_a_map_injected_into_a_u_net_takes_the_place_of_its_skip() -> None:
    student = create_student("unet-shufflenet-x0.5", 2).eval()
    with torch.no_grad():
        output = student(inputs_of(student), tuple(student.stages))
        other = torch.randn_like(output.stages["s2"])
        resumed = student.resume("s2", other, output.stages)
        replaced = {**output.stages, "s2": other}
        replaced["s3"] = student.advance("s2", other)
        replaced["s4"] = student.advance("s4_pre", student.advance("s3", replaced["s3"]))
        assert torch.equal(resumed.logits, student.conclude(replaced).logits)
        assert resumed.logits.shape == output.logits.shape
    assert not torch.equal(resumed.logits, output.logits)


def test_a_u_net_without_its_shallower_maps_says_which() -> None:
    student = create_student("unet-shufflenet-x0.5", 2).eval()
    with pytest.raises(UsageError, match="shallower") as caught:
        student.resume("s3", torch.zeros(1, 96, 2, 2), {})
    assert caught.value.facts["lacking"] == "s2, s1, s0"


def test_a_network_that_is_no_chain_says_so() -> None:
    student = create_student("timm:resnet10t", 3).eval()
    assert student.injectable == ()
    with pytest.raises(UsageError, match="not a chain"):
        student.resume("s4", torch.zeros(1, 512, 2, 2), {})


def test_an_unknown_stage_is_named() -> None:
    student = create_student("shufflenet-x0.5", 2)
    with pytest.raises(UnknownNameError, match="s5"):
        student.resume("s5", torch.zeros(1, 3, 32, 32), {})
