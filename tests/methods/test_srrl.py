"""SRRL: the student's features before the teacher's classifier."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rdcache.errors import UsageError
from rdcache.methods import (
    CachedBatch,
    ChannelStatistics,
    MethodContext,
    TrainingProgress,
    create_method,
)
from rdcache.methods.srrl import SoftmaxRegression
from rdcache.models import StudentOutput

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
START = TrainingProgress(epoch=0, epochs=10)


def srrl(context: MethodContext, **options: object) -> SoftmaxRegression:
    torch.manual_seed(3)
    method = create_method("srrl", options, context)
    assert isinstance(method, SoftmaxRegression)
    method.begin_stage("student")
    return method


@pytest.fixture
def setting(context: BuildContext) -> MethodContext:
    weight, bias = torch.randn(3, 16), torch.randn(3)
    statistics = ChannelStatistics(torch.randn(16), torch.rand(16) + 0.5)
    return context(probe=lambda tap: (weight, bias), statistics=lambda tap: statistics)


@pytest.mark.parametrize(
    ("tap", "norm"), [("pooled", "channel"), ("s4", "channel"), ("s4", "none")]
)
def test_both_terms_are_squared_errors_in_features_and_in_the_teachers_logits(
    setting: MethodContext,
    batch: CachedBatch,
    student_output: ComputeOutput,
    tap: str,
    norm: str,
) -> None:
    method = srrl(setting, tap=tap, feature_norm=norm, weight=2.0)
    assert method.taps == (tap,)
    student = student_output(setting)
    terms = method(batch, student, START)
    maps = student.stages["s4"].double()
    g = method.connector.double()(maps).mean((2, 3))
    f = batch.taps[tap].double()
    f = f if f.ndim == 2 else f.mean((2, 3))
    weight, bias = (tensor.double() for tensor in setting.probe(tap))
    mean, std = (t.double() for t in vars(setting.statistics(tap)).values())
    if norm == "none":
        mean, std = torch.zeros(16), torch.ones(16)
    z_t = f @ weight.T + bias
    z_s = (g * std + mean) @ weight.T + bias  # back to what the probe was fitted on
    assert terms.keys() == {"ce", "fm", "sr"}
    fm, sr = (g - (f - mean) / std).square().mean(), (z_s - z_t).square().mean()
    assert terms["fm"].item() == pytest.approx(2 * fm.item(), rel=1e-4)
    assert terms["sr"].item() == pytest.approx(2 * sr.item(), rel=1e-4)


def test_only_the_connector_trains_and_the_classifier_stays(
    setting: MethodContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    method = srrl(setting)
    before = method.weight.clone()
    student = student_output(setting)
    torch.stack(list(method(batch, student, START).values())).sum().backward()
    assert set(method.trainable_parameters("student")) == set(method.connector.parameters())
    assert all(parameter.grad is not None for parameter in method.connector.parameters())
    assert student.stages["s4"].grad is not None
    assert torch.equal(method.weight, before)


def test_gradients_pass_the_finite_difference_check(
    setting: MethodContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    method = srrl(setting).double()
    student = student_output(setting)

    def own_terms(maps: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = StudentOutput(student.features, student.logits, {"s4": maps})
        return tuple(method.own_terms(batch, output, START).values())

    maps = student.stages["s4"].detach().double().requires_grad_()
    assert torch.autograd.gradcheck(own_terms, (maps,))


def test_the_pooled_tap_comes_first_and_the_default_map_where_there_is_none(
    context: BuildContext,
) -> None:
    assert srrl(context()).taps == ("pooled",)
    taps = {name: spec for name, spec in context().taps.items() if name != "pooled"}
    assert srrl(context(taps=taps)).taps == ("s4",)


def test_the_published_relu_asks_for_features_as_they_are(
    setting: MethodContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    method = srrl(setting, activation="relu", feature_norm="none")
    connected = method.connector(student_output(setting).stages["s4"])
    assert connected.min() == 0
    with pytest.raises(UsageError, match="relu needs feature_norm=none"):
        srrl(setting, activation="relu")


@pytest.mark.parametrize("head", ["own", "rd"])
def test_heads_whose_weights_are_no_linear_layer_are_refused(
    setting: MethodContext, head: str
) -> None:
    with pytest.raises(UsageError, match=r"stored logits come without[\s\S]*linear-probe"):
        srrl(setting, teacher_head=head)


def test_two_classes_are_no_special_case(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(num_classes=2, probe=lambda tap: (torch.randn(2, 16), torch.randn(2)))
    two = CachedBatch(batch.samples, batch.taps, batch.target % 2)
    assert srrl(setting)(two, student_output(setting), START)["sr"] > 0
