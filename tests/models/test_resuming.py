"""Running a student on from a replaced stage: the way DRD's hybrid outputs are computed."""

from __future__ import annotations

import pytest
import torch

from rdcache.errors import UnknownNameError, UsageError
from rdcache.models import Student, create_student

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(9))
CHAINS = ("resnet18", "mobilenet", "shufflenet", "shufflenet-x0.5")


def inputs_of(student: Student) -> torch.Tensor:
    return IMAGES


@pytest.mark.parametrize("name", CHAINS)
def test_a_student_resumed_from_its_own_stage_is_its_forward_pass(name: str) -> None:
    student = create_student(name, 3).eval()
    with torch.no_grad():
        output = student(inputs_of(student), tuple(student.stages))
        for stage in student.stages:
            resumed = student.resume(stage, output.stages[stage], output.stages)
            assert torch.equal(resumed.logits, output.logits)
            assert torch.equal(resumed.features, output.features)
            assert all(torch.equal(resumed.stages[s], output.stages[s]) for s in resumed.stages)


@pytest.mark.parametrize("name", CHAINS)
def test_gradients_of_resumed_logits_reach_the_injected_map_and_what_is_behind_it(
    name: str,
) -> None:
    student = create_student(name, 3)
    output = student(inputs_of(student), tuple(student.stages))
    own = {stage: maps.detach() for stage, maps in output.stages.items()}
    assert student.injectable == ("s1", "s2", "s3", "s4")
    for stage in student.injectable:
        student.zero_grad()
        injected = torch.randn_like(own[stage]).requires_grad_()
        student.resume(stage, injected, own).logits.sum().backward()
        assert injected.grad is not None
        assert injected.grad.abs().sum() > 0
        chain = student.backbone.chain
        for number, name_of_segment in enumerate(chain):
            reached = [
                parameter.grad is not None
                for parameter in student.backbone.get_submodule(
                    f"segments.{name_of_segment}"
                ).parameters()
            ]
            assert all(reached) if number > chain.index(stage) else not any(reached)
        assert student.classifier.weight.grad is not None


def test_a_network_that_is_no_chain_says_so() -> None:
    student = create_student("timm:resnet10t", 3).eval()
    assert student.injectable == ()
    maps = torch.zeros(1, 512, 2, 2)
    with pytest.raises(UsageError, match="not a chain"):
        student.resume("s4", maps, {})


def test_an_unknown_stage_is_named() -> None:
    with pytest.raises(UnknownNameError, match="s5"):
        create_student("shufflenet-x0.5", 2).resume("s5", IMAGES, {})
