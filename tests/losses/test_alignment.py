"""Alignment of classes and of samples against sums written out, index by index."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import batch_alignment, class_alignment

BOTH = pytest.mark.parametrize("alignment", [class_alignment, batch_alignment])
Alignment = Callable[..., torch.Tensor]


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def softened(z: torch.Tensor, temperature: float) -> np.ndarray:
    powers = np.exp(z.numpy() / temperature)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def reference(y_s: np.ndarray, y_t: np.ndarray, weights: np.ndarray) -> float:
    """(1/n)·Σ_i m_i·Σ_j (⟨y_t,i, y_t,j⟩ − ⟨y_s,i, y_s,j⟩)² over the rows of both."""
    total = 0.0
    for i in range(len(y_s)):
        for j in range(len(y_s)):
            total += weights[i] * (np.dot(y_t[i], y_t[j]) - np.dot(y_s[i], y_s[j])) ** 2
    return total / len(y_s)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_both_levels_are_their_formulas_with_and_without_weights(temperature: float) -> None:
    student, teacher = logits(6, 4), logits(6, 4, seed=1)
    y_s, y_t = softened(student, temperature), softened(teacher, temperature)
    m, n = np.array([1.0, 0, 0, 1, 1, 0]), np.array([0.0, 1, 1, 0])
    values = [
        class_alignment(student, teacher, temperature),
        class_alignment(student, teacher, temperature, torch.from_numpy(n)),
        batch_alignment(student, teacher, temperature),
        batch_alignment(student, teacher, temperature, torch.from_numpy(m)),
    ]
    expected = [
        reference(y_s.T, y_t.T, np.ones(4)),
        reference(y_s.T, y_t.T, n),
        reference(y_s, y_t, np.ones(6)),
        reference(y_s, y_t, m),
    ]
    assert [value.item() for value in values] == pytest.approx(expected, rel=1e-10)


@BOTH
def test_gradients_pass_the_finite_difference_check(alignment: Alignment) -> None:
    student, teacher = logits(4, 4).requires_grad_(), logits(4, 4, seed=1).requires_grad_()
    weights = torch.tensor([1.0, 0, 1, 1], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s, t: alignment(s, t, 2.0, weights), (student, teacher))


@BOTH
def test_autocast_does_not_lower_the_precision(alignment: Alignment) -> None:
    student, teacher = logits(6, 4).float(), logits(6, 4, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = alignment(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, alignment(student, teacher))


@BOTH
def test_wrong_shapes_are_refused(alignment: Alignment) -> None:
    with pytest.raises(UsageError, match="one shape"):
        alignment(logits(6, 4), logits(5, 4))
    with pytest.raises(UsageError, match="a weight for each row"):
        alignment(logits(6, 4), logits(6, 4), 1.0, torch.ones(5, dtype=torch.float64))
