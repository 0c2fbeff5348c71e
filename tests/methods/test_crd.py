"""Contrastive representation distillation: its negatives, its banks, its value."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.methods import CachedBatch, MethodContext, TrainingProgress, create_method
from rdcache.methods.crd import ContrastiveRepresentationDistillation
from rdcache.models import StudentOutput

BuildContext = Callable[..., MethodContext]
ComputeOutput = Callable[[MethodContext], StudentOutput]
START = TrainingProgress(epoch=0, epochs=10)
# Samples 8 to 11 of the store do not train; classes are not in order.
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, -1, -1, -1, -1])


def crd(context: MethodContext, **options: object) -> ContrastiveRepresentationDistillation:
    torch.manual_seed(3)
    method = create_method("crd", {"embedding": 5, **options}, context)
    assert isinstance(method, ContrastiveRepresentationDistillation)
    return method


def embedded(layer: torch.nn.Linear, features: torch.Tensor) -> np.ndarray:
    weight, bias = layer.weight.detach().double(), layer.bias.detach().double()
    embedding = (features.detach().double() @ weight.T + bias).numpy()
    return np.asarray(embedding / np.linalg.norm(embedding, axis=1, keepdims=True))


def direction(
    anchors: np.ndarray, bank: np.ndarray, labels: np.ndarray, K: float, tau: float
) -> float:
    """Loss of anchor i, whose positive is row i of the bank, with Z estimated from this batch.

    Drawing with replacement takes each of the m negatives K/m times on average.
    """
    n = len(bank)
    powers = np.exp(anchors @ bank.T / tau)
    means = []
    for i in range(n):
        others = labels != labels[i]
        means.append((powers[i, i] + K * powers[i, others].mean()) / (1 + K))
    P, noise, total = powers / (n * np.mean(means)), K / n, 0.0
    for i in range(n):
        others = labels != labels[i]
        total -= np.log(P[i, i] / (P[i, i] + noise))
        total -= K * np.log(noise / (P[i, others] + noise)).mean()
    return float(total / n)


def by_sample(method: ContrastiveRepresentationDistillation, bank: torch.Tensor) -> np.ndarray:
    return bank[method.banks.row_of[torch.arange(8)]].double().numpy()


@pytest.mark.parametrize("classes", [2, 3])
def test_its_value_is_that_of_the_formula_in_both_directions(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput, classes: int
) -> None:
    labels = torch.where(LABELS < 0, LABELS, LABELS % classes)
    setting = context(num_classes=classes, labels=labels)
    method = crd(setting, weight=0.5, negatives=40, contrast_temperature=0.3)
    assert method.taps == ("pooled",)
    own = CachedBatch(batch.samples, batch.taps, labels[:8])
    student = student_output(setting)
    banks = by_sample(method, method.banks.students), by_sample(method, method.banks.teachers)
    value = method(own, student, START)["crd"]
    mine = embedded(method.student_embedding, student.features)
    theirs = embedded(method.teacher_embedding, batch.taps["pooled"])
    expected = direction(mine, banks[1], labels[:8].numpy(), 40, 0.3)
    expected += direction(theirs, banks[0], labels[:8].numpy(), 40, 0.3)
    assert value.item() == pytest.approx(0.5 * expected, rel=1e-4)
    value.backward()
    assert all(p.grad is not None for p in method.trainable_parameters("student"))
    assert student.features.grad is not None


def test_a_step_moves_the_banks_and_leaves_the_normalisers(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(labels=LABELS)
    method = crd(setting, momentum=0.25)
    some = CachedBatch(
        batch.samples[:3], {k: v[:3] for k, v in batch.taps.items()}, batch.target[:3]
    )
    student = student_output(setting)
    seen = StudentOutput(student.features[:3], student.logits[:3], {})
    before = by_sample(method, method.banks.students)
    method(some, seen, START)["crd"].backward()
    partitions = method.banks.log_partitions.clone()
    assert partitions.isfinite().all()
    method.after_step()
    moved = 0.25 * before[:3] + 0.75 * embedded(method.student_embedding, seen.features)
    after = by_sample(method, method.banks.students)
    np.testing.assert_allclose(
        after[:3], moved / np.linalg.norm(moved, axis=1, keepdims=True), rtol=1e-5
    )
    np.testing.assert_array_equal(after[3:], before[3:])
    method(some, seen, START)
    assert torch.equal(method.banks.log_partitions, partitions)
    assert {
        "banks.students",
        "banks.teachers",
        "banks.log_partitions",
    } <= method.state_dict().keys()


def test_with_more_samples_than_negatives_they_are_drawn_evenly_from_other_classes(
    context: BuildContext,
) -> None:
    method = crd(context(labels=LABELS), negatives=7)
    target = torch.tensor([0, 1, 2]).repeat(300)
    drawn = method.banks._draw(target)
    assert drawn is not None
    assert drawn.shape == (900, 7)
    classes = method.banks.class_of[drawn]
    assert (classes != target[:, None]).all()
    for own in range(3):
        rows, counts = drawn[target == own].unique(return_counts=True)
        assert len(rows) == int((LABELS[:8] != own).sum())
        assert (counts / counts.sum()).numpy() == pytest.approx(1 / len(rows), rel=0.25)


def test_what_is_drawn_and_what_is_counted_agree_on_average(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput
) -> None:
    setting = context(labels=LABELS)
    student = student_output(setting)
    own = CachedBatch(batch.samples, batch.taps, LABELS[:8])
    all_of_them = crd(setting, negatives=7, weight=1.0)
    all_of_them.banks._draw = lambda target: None  # type: ignore[method-assign,assignment]
    drawing = crd(setting, negatives=7, weight=1.0)
    expected = all_of_them(own, student, START)["crd"].item()
    drawing.banks.log_partitions.copy_(all_of_them.banks.log_partitions)
    values = [drawing(own, student, START)["crd"].item() for _ in range(200)]
    error = np.std(values) / np.sqrt(len(values))
    assert np.mean(values) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("negatives", [4, 40])
def test_a_tiny_temperature_overflows_nothing(
    context: BuildContext, batch: CachedBatch, student_output: ComputeOutput, negatives: int
) -> None:
    setting = context(labels=LABELS)
    method = crd(setting, contrast_temperature=1e-3, negatives=negatives)
    own = CachedBatch(batch.samples, batch.taps, LABELS[:8])
    value = method(own, student_output(setting), START)["crd"]
    assert method.banks.log_partitions.isfinite().all()
    assert method.banks.log_partitions.max() > 100  # e^100 is more than float32 holds
    value.backward()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_samples_of_one_class_are_refused(context: BuildContext) -> None:
    with pytest.raises(UsageError, match="different classes"):
        crd(context(labels=torch.zeros(8, dtype=torch.int64)))
