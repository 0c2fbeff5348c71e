"""Masked generative distillation: its mask, its generator, the meaning of its weight."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from rdcache.methods import CachedBatch, MethodContext, TrainingProgress, create_method
from rdcache.methods.mgd import MaskedGenerativeDistillation
from rdcache.models import StudentOutput

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
START = TrainingProgress(epoch=0, epochs=10)


def mgd(context: MethodContext, **options: object) -> MaskedGenerativeDistillation:
    torch.manual_seed(3)
    method = create_method("mgd", options, context)
    assert isinstance(method, MaskedGenerativeDistillation)
    return method.double()  # type: ignore[return-value]


def doubled(student: StudentOutput) -> StudentOutput:
    stages = {name: maps.double() for name, maps in student.stages.items()}
    return StudentOutput(student.features, student.logits, stages)


def generated(method: MaskedGenerativeDistillation, aligned: torch.Tensor) -> torch.Tensor:
    first, _, last = method.generator
    hidden = F.conv2d(aligned, first.weight, first.bias, padding=1).clamp_min(0)  # type: ignore[arg-type]
    return F.conv2d(hidden, last.weight, last.bias, padding=1)  # type: ignore[arg-type]


def test_its_weight_is_that_of_the_sum_over_the_teachers_whole_map(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method, student = mgd(setting, weight=0.1, masked=0.0), doubled(student_output(setting))
    terms = method(batch, student, START)
    assert terms.keys() == {"ce", "mgd"}
    assert (method.taps, method.student_stages) == (("s4",), ("s4",))
    theirs = F.adaptive_avg_pool2d(batch.taps["s4"].double(), 2)
    error = (generated(method, method.align(student.stages["s4"])) - theirs) ** 2
    # 3×3 positions of the teacher for the 2×2 that are compared.
    expected = 0.1 * error.sum().item() / len(theirs) * 9 / 4
    assert terms["mgd"].item() == pytest.approx(expected, rel=1e-6)
    method(batch, student, START)["mgd"].backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


def test_the_mask_strikes_out_whole_channels_of_a_sample_at_the_rate_asked_for(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method = mgd(setting, masked=0.4)
    student, seen = doubled(student_output(setting)), []
    method.generator.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for _ in range(30):
        method(batch, student, START)
    aligned = method.align(student.stages["s4"])
    masked = torch.stack([maps == 0 for maps in seen])
    assert (masked.all((3, 4)) == masked.any((3, 4))).all()
    assert masked.double().mean().item() == pytest.approx(0.4, abs=0.03)
    assert torch.equal(seen[0][~masked[0]], aligned[~masked[0]])
    assert not torch.equal(masked[0], masked[1])


def test_equally_many_channels_are_not_aligned_and_the_generator_is_as_wide_as_told(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    method = mgd(context(student_stages={"s4": (16, 32)}), width=4)
    assert {tuple(p.shape) for p in method.parameters()} == {
        (4, 16, 3, 3),
        (4,),
        (16, 4, 3, 3),
        (16,),
    }


def test_a_vector_is_a_map_of_one_position(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method, student = mgd(setting, tap="pooled", masked=0.0), doubled(student_output(setting))
    value = method(batch, student, START)["mgd"]
    mine = generated(method, method.align(student.stages["s4"]).mean((2, 3), keepdim=True))
    error = (mine[:, :, 0, 0] - batch.taps["pooled"].double()) ** 2
    assert value.item() == pytest.approx(7e-5 * error.sum().item() / 8, rel=1e-6)
