"""Variational information distillation as a method."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rdcache.methods import CachedBatch, MethodContext, TrainingProgress, create_method
from rdcache.methods.vid import VariationalInformationDistillation
from rdcache.models import StudentOutput

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
START = TrainingProgress(epoch=0, epochs=10)


def vid(context: MethodContext, **options: object) -> VariationalInformationDistillation:
    torch.manual_seed(3)
    method = create_method("vid", options, context)
    assert isinstance(method, VariationalInformationDistillation)
    return method


def weights(method: VariationalInformationDistillation, pair: int) -> list[torch.Tensor]:
    convolutions = [m for m in method.predictors[pair].modules() if isinstance(m, nn.Conv2d)]
    return [convolution.weight[:, :, 0, 0].detach().double() for convolution in convolutions]


def test_it_is_the_unlikeliness_of_every_common_stage(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method, student = vid(setting, weight=3.0, variance=0.5), student_output(setting)
    terms = method(batch, student, START)
    assert terms.keys() == {"ce", "vid"}
    expected = 0.0
    for number, (stage, side) in enumerate((("s3", 4), ("s4", 2))):
        theirs = F.adaptive_avg_pool2d(batch.taps[stage].double(), side).movedim(1, -1)
        mine = student.stages[stage].detach().double().movedim(1, -1)
        first, second, third = weights(method, number)
        mean = ((mine @ first.T).clamp_min(0) @ second.T).clamp_min(0) @ third.T
        log_variance = torch.tensor(0.5).log()
        expected += ((theirs - mean) ** 2 / 0.5 + log_variance).mean().item() / 2
    assert terms["vid"].item() == pytest.approx(3 * expected, rel=1e-4)


def test_the_variances_start_as_told_and_train(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context()
    method = vid(setting)
    variance = method.predictors[0].variance
    torch.testing.assert_close(variance, torch.full((16, 1, 1), 5.0))  # type: ignore[arg-type]
    trained = set(method.trainable_parameters("student"))
    assert {predictor.rho for predictor in method.predictors} <= trained
    method(batch, student_output(setting), START)["vid"].backward()
    assert all(parameter.grad is not None for parameter in trained)


def test_its_inner_layers_are_no_wider_than_told(context: BuildContext) -> None:
    assert [w.shape for w in weights(vid(context(), width=5), 0)] == [(5, 10), (5, 5), (16, 5)]
    published = [(16, 10), (16, 16), (16, 16)]
    assert [w.shape for w in weights(vid(context(), width=None), 0)] == published
