"""NORM: its value, its ramp, and that the deployed student is the one that was trained."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.methods import (
    CachedBatch,
    ChannelStatistics,
    MethodContext,
    TrainingProgress,
    create_method,
)
from rdcache.methods.averaging import MovingAverage
from rdcache.methods.norm import ManyToOneMatching, ramp
from rdcache.models import StudentOutput, create_student
from rdcache.store import TapSpec

BuildContext = Callable[..., MethodContext]
MIDDLE = TrainingProgress(epoch=5, epochs=10)


def norm(context: MethodContext, **options: object) -> ManyToOneMatching:
    torch.manual_seed(3)
    method = create_method("norm", options, context)
    assert isinstance(method, ManyToOneMatching)
    return method


def output(context: MethodContext, side: int = 2) -> StudentOutput:
    """A student whose features are the mean of its last map, as this method needs."""
    generator = torch.Generator().manual_seed(2)
    maps = torch.randn(8, 12, side, side, generator=generator).requires_grad_()
    features = maps.mean((2, 3))
    return StudentOutput(features, context.classifier(features), {"s4": maps})


def batch_normed(maps: torch.Tensor) -> torch.Tensor:
    mean = maps.mean((0, 2, 3), keepdim=True)
    variance = ((maps - mean) ** 2).mean((0, 2, 3), keepdim=True)
    return (maps - mean) / (variance + 1e-5).sqrt()


def by_matrix(layers: nn.Module, maps: torch.Tensor) -> torch.Tensor:
    weight = next(layers.parameters())[:, :, 0, 0].double()
    return torch.einsum("oc,bchw->bohw", weight, maps)


@pytest.mark.parametrize("classes", [2, 3])
def test_terms_are_the_formulas(context: BuildContext, batch: CachedBatch, classes: int) -> None:
    setting = context(
        num_classes=classes, classifier=nn.Linear(12, classes), task_loss=F.cross_entropy
    )
    batch = CachedBatch(batch.samples, batch.taps, batch.target % classes)
    method, student = norm(setting, weight=3.0, copies=4), output(setting)
    terms = method(batch, student, MIDDLE)
    maps = student.stages["s4"].detach().double()
    expanded = batch_normed(by_matrix(method.expand, maps))
    theirs = F.adaptive_max_pool2d(batch.taps["s4"].double(), 2)
    errors = [((expanded[:, 16 * n : 16 * n + 16] - theirs) ** 2).mean() for n in range(4)]
    assert terms["norm"].item() == pytest.approx(3 * sum(e.item() for e in errors), rel=1e-4)
    whole = maps + batch_normed(by_matrix(method.reduce, expanded))
    weight = setting.classifier.weight.detach().double()
    logits = whole.mean((2, 3)) @ weight.T + setting.classifier.bias.detach().double()
    if classes > 2:
        centred = logits - logits.mean(1, keepdim=True)
        logits = 2.5 * centred / (centred**2).mean(1, keepdim=True).sqrt()
    expected = F.cross_entropy(logits, batch.target).item()
    assert terms["ce"].item() == pytest.approx(expected, rel=1e-4)
    torch.stack(list(terms.values())).sum().backward()
    assert student.stages["s4"].grad is not None
    assert all(p.grad is not None for p in method.trainable_parameters("student"))


def test_with_two_classes_the_cross_entropy_moves_the_student(
    context: BuildContext, batch: CachedBatch
) -> None:
    """Layer norm would make every logit ±2.5, whatever the student says."""
    setting = context(
        num_classes=2, classifier=nn.Linear(12, 2), task_loss=nn.functional.cross_entropy
    )
    two = CachedBatch(batch.samples, batch.taps, batch.target % 2)
    gradients = []
    for logit_norm in ("auto", "layer"):
        student = output(setting)
        norm(setting, logit_norm=logit_norm)(two, student, MIDDLE)["ce"].backward()
        gradient = student.stages["s4"].grad
        assert gradient is not None
        gradients.append(gradient.norm().item())
    assert gradients[0] > 1e-3
    assert gradients[1] < 0.01 * gradients[0]


def test_kd_beside_it_compares_normalised_logits(context: BuildContext, batch: CachedBatch) -> None:
    setting = context()
    method = norm(setting, kd_weight=1.0)
    method.begin_stage("student")
    logits = method.teacher_logits(batch)
    torch.testing.assert_close(logits.std(1, correction=0), torch.full((8,), 2.5))
    assert method(batch, output(setting), MIDDLE).keys() == {"ce", "norm", "kd"}


def test_the_ramp_is_that_of_240_epochs() -> None:
    epochs = (0, 9, 10, 19, 20, 179, 180, 209, 210, 239)
    factors = [ramp(epoch / 240) for epoch in epochs]
    assert factors == [0.1, 0.1, 0.5, 0.5, 1.0, 1.0, 0.5, 0.5, 0.1, 0.1]


def test_fewer_copies_are_made_of_a_wide_map(context: BuildContext) -> None:
    assert norm(context(), width=None).copies == 8
    assert norm(context(), width=50).copies == 3
    assert norm(context(), width=5).copies == 2
    assert norm(context(), copies=1, width=5).copies == 1


@pytest.mark.parametrize("classes", [2, 3])
def test_the_deployed_student_says_what_was_trained(context: BuildContext, classes: int) -> None:
    torch.manual_seed(0)
    student = create_student("shufflenet-x0.5", classes)
    setting = context(
        num_classes=classes,
        classifier=student.classifier,
        feature_dim=student.feature_dim,
        student_stages=student.stages,
        task_loss=F.cross_entropy,
        taps={"s4": TapSpec("s4", "map2d", (4, 3, 3))},
        statistics=lambda name: ChannelStatistics(torch.zeros(4), torch.ones(4)),
    )
    method = norm(setting)
    images, target = torch.randn(8, 3, 64, 64), torch.arange(8) % classes
    batch = CachedBatch(torch.arange(8), {"s4": torch.randn(8, 4, 3, 3)}, target)
    trained = {*student.parameters(), *method.trainable_parameters("student")}
    optimiser = torch.optim.SGD(list(trained), lr=1e-3)
    normed, spreads = method._normed, []

    def noting(logits: torch.Tensor) -> torch.Tensor:
        spreads.append(logits.detach().std(1, correction=0).mean().item())
        return normed(logits)

    method._normed = noting  # type: ignore[method-assign]
    for _ in range(2):
        terms = method(batch, student(images, ["s4"]), MIDDLE)
        optimiser.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        optimiser.step()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    method.eval()
    with torch.no_grad():
        plain = student.eval()(images, ["s4"])
        added = method.reduce(method.expand(plain.stages["s4"])).mean((2, 3))
        expected = student.classifier(plain.features + added)
        if classes > 2:
            expected = expected * 2.5 / (0.9 * spreads[0] + 0.1 * spreads[1])
        deployed = method.deployed(student)(images)
    torch.testing.assert_close(deployed.logits, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(deployed.logits, plain.logits, atol=1e-3)
    torch.testing.assert_close(deployed.features, plain.features)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


def test_the_spread_is_a_moving_mean_of_the_samples_standard_deviations(
    context: BuildContext, batch: CachedBatch
) -> None:
    method = norm(context())
    logits = torch.tensor([[1.0, 2.0, 3.0], [0.0, 6.0, 0.0]])
    method._note_spread(logits)
    first = ((2 / 3) ** 0.5 + 8**0.5) / 2
    assert method.spread.item() == pytest.approx(first)
    method._note_spread(3 * logits)
    assert method.spread.item() == pytest.approx(0.9 * first + 0.1 * 3 * first)


def test_averaged_layers_are_merged_where_they_are_given(context: BuildContext) -> None:
    torch.manual_seed(0)
    student = create_student("shufflenet-x0.5", 3)
    taps = {"s4": TapSpec("s4", "map2d", (4, 3, 3))}
    setting = context(
        taps=taps,
        feature_dim=student.feature_dim,
        student_stages=student.stages,
        statistics=lambda name: ChannelStatistics(torch.zeros(4), torch.ones(4)),
    )
    method = norm(setting)
    average = MovingAverage(method.merged, decay=0.5)
    with torch.no_grad():
        for parameter in method.merged.parameters():
            parameter.mul_(2)
    other = norm(setting)  # as it was before
    expected = other.deployed(student).classifier.weight
    found = method.deployed(student, average.averaged).classifier.weight
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(method.deployed(student).classifier.weight, expected)


def test_students_that_classify_something_else_are_refused(
    context: BuildContext, batch: CachedBatch
) -> None:
    with pytest.raises(UsageError, match="classifies the mean of its s3"):
        norm(context(), stage="s3")
    setting = context()
    other = output(setting)
    other = StudentOutput(other.features.relu(), other.logits, other.stages)
    with pytest.raises(UsageError, match="classifies the mean of its s4"):
        norm(setting)(batch, other, MIDDLE)
