"""Logits without mean and spread."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import standardised_logits


def logits(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(*shape, generator=generator, dtype=torch.float64) + 5


def test_it_is_the_z_score_of_each_row() -> None:
    z = logits(6, 4)
    rows = z.numpy()
    expected = (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True, ddof=1)
    np.testing.assert_allclose(standardised_logits(z).numpy(), expected, rtol=1e-6)


def test_neither_scale_nor_shift_changes_it() -> None:
    moved = standardised_logits(100 * logits(6, 4) - 7)
    assert torch.allclose(standardised_logits(logits(6, 4)), moved, atol=1e-6)


def test_of_two_classes_the_sign_is_left_and_no_gradient() -> None:
    z = logits(6, 2).requires_grad_()
    standardised = standardised_logits(z)
    assert standardised.abs().detach().numpy() == pytest.approx(1 / np.sqrt(2), rel=1e-5)
    (gradient,) = torch.autograd.grad(standardised[:, 0].sum(), z)
    assert gradient.abs().max().item() == pytest.approx(0, abs=1e-6)


def test_gradients_pass_the_finite_difference_check_and_are_finite_for_equal_logits() -> None:
    assert torch.autograd.gradcheck(standardised_logits, (logits(3, 4).requires_grad_(),))
    z = torch.zeros(2, 3, requires_grad=True)
    standardised_logits(z).sum().backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_half_precision_is_raised_to_float32_and_vectors_are_refused() -> None:
    assert standardised_logits(logits(2, 3).bfloat16()).dtype == torch.float32
    with pytest.raises(UsageError, match="at least two classes"):
        standardised_logits(torch.zeros(3))
