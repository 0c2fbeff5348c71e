"""Pearson's correlation of predictions against numpy's, and where it has nothing to say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import inter_class_relation, intra_class_relation

BOTH = pytest.mark.parametrize("relation", [inter_class_relation, intra_class_relation])
Relation = Callable[..., torch.Tensor]


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def softened(z: torch.Tensor, temperature: float) -> np.ndarray:
    powers = np.exp(z.numpy() / temperature)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_both_relations_are_one_minus_pearsons_coefficient(temperature: float) -> None:
    student, teacher = logits(7, 4), logits(7, 4, seed=1)
    y_s, y_t = softened(student, temperature), softened(teacher, temperature)
    rows = np.mean([np.corrcoef(y_s[i], y_t[i])[0, 1] for i in range(7)])
    columns = np.mean([np.corrcoef(y_s[:, j], y_t[:, j])[0, 1] for j in range(4)])
    inter = inter_class_relation(student, teacher, temperature)
    intra = intra_class_relation(student, teacher, temperature)
    assert inter.item() == pytest.approx(temperature**2 * (1 - rows), rel=1e-10)
    assert intra.item() == pytest.approx(temperature**2 * (1 - columns), rel=1e-10)


def test_between_two_classes_there_is_no_gradient_and_within_them_there_is() -> None:
    student, teacher = logits(7, 2).requires_grad_(), logits(7, 2, seed=1)
    between = torch.autograd.grad(inter_class_relation(student, teacher), student)[0]
    within = torch.autograd.grad(intra_class_relation(student, teacher), student)[0]
    assert between.abs().max().item() == pytest.approx(0, abs=1e-12)
    assert within.abs().max().item() > 1e-3


@BOTH
def test_predictions_without_any_spread_give_no_gradient(relation: Relation) -> None:
    student = torch.zeros(5, 3, requires_grad=True)
    value = relation(student, logits(5, 3).float())
    value.backward()
    assert value.item() == 1
    assert student.grad is not None
    assert not student.grad.any()


@BOTH
def test_gradients_pass_the_finite_difference_check(relation: Relation) -> None:
    student, teacher = logits(5, 3).requires_grad_(), logits(5, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda s, t: relation(s, t, 2.0), (student, teacher))


@BOTH
def test_autocast_does_not_lower_the_precision(relation: Relation) -> None:
    student, teacher = logits(6, 4).float(), logits(6, 4, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = relation(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, relation(student, teacher))


@BOTH
def test_wrong_shapes_are_refused(relation: Relation) -> None:
    with pytest.raises(UsageError, match="one shape"):
        relation(logits(6, 4), logits(5, 4))
