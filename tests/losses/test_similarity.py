"""CKA and HSIC against the formulas, written out in float64 with the matrices of the papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdcache.errors import UsageError
from rdcache.losses import cka, cka_each, hsic

EITHER = pytest.mark.parametrize("unbiased", [True, False])
SHAPES = pytest.mark.parametrize(("n", "d_x", "d_y"), [(4, 3, 5), (9, 64, 7), (40, 6, 3)])


def biased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """tr(KHLH) / (n−1)²."""
    n = len(x)
    K, L, H = x @ x.T, y @ y.T, np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(K @ H @ L @ H)) / (n - 1) ** 2


def unbiased_hsic(x: np.ndarray, y: np.ndarray) -> float:
    """HSIC₁ of Song et al., term by term."""
    n = len(x)
    K, L, one = x @ x.T, y @ y.T, np.ones(len(x))
    np.fill_diagonal(K, 0)
    np.fill_diagonal(L, 0)
    first = np.trace(K @ L)
    second = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
    third = 2 / (n - 2) * (one @ K @ L @ one)
    return float(first + second - third) / (n * (n - 3))


def reference_cka(x: np.ndarray, y: np.ndarray, unbiased: bool) -> float:
    estimate = unbiased_hsic if unbiased else biased_hsic
    return estimate(x, y) / np.sqrt(estimate(x, x) * estimate(y, y))


def features(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@EITHER
@SHAPES
def test_hsic_is_the_formula_in_gram_and_in_feature_space_form(
    n: int, d_x: int, d_y: int, unbiased: bool
) -> None:
    x, y = features(n, d_x, 0) + 3, features(n, d_y, 1) - 2
    expected = (unbiased_hsic if unbiased else biased_hsic)(x.numpy(), y.numpy())
    assert hsic(x, y, unbiased).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@EITHER
@SHAPES
def test_cka_is_the_formula(n: int, d_x: int, d_y: int, unbiased: bool) -> None:
    x = features(n, d_x, 2)
    y = x[:, :1] * features(1, d_y, 3) + 0.3 * features(n, d_y, 4)
    expected = reference_cka(x.numpy(), y.numpy(), unbiased)
    assert cka(x, y, unbiased).item() == pytest.approx(expected, rel=1e-9)
    assert cka(x.float(), y.float(), unbiased).item() == pytest.approx(expected, abs=1e-4)


@EITHER
def test_cka_of_features_with_themselves_is_one(unbiased: bool) -> None:
    assert cka(features(16, 8, 0), features(16, 8, 0), unbiased).item() == pytest.approx(1)


@EITHER
@settings(max_examples=20, deadline=None)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10), seed=st.integers(0, 99))
def test_cka_ignores_rotation_scale_and_translation(
    unbiased: bool, scale: float, shift: float, seed: int
) -> None:
    x, y = features(12, 6, seed), features(12, 9, seed + 1)
    rotation = torch.linalg.qr(features(9, 9, seed + 2)).Q
    moved = scale * y @ rotation + shift
    assert cka(x, moved, unbiased).item() == pytest.approx(cka(x, y, unbiased).item(), abs=1e-7)


def test_only_the_unbiased_cka_of_independent_features_is_zero() -> None:
    draws = [(features(32, 512, 2 * i), features(32, 512, 2 * i + 1)) for i in range(20)]
    assert np.mean([cka(x, y).item() for x, y in draws]) == pytest.approx(0, abs=0.1)
    assert np.mean([cka(x, y, unbiased=False).item() for x, y in draws]) == pytest.approx(
        0.94, abs=0.01
    )


@EITHER
@pytest.mark.parametrize("shape", [(6, 9), (12, 3)])
def test_gradients_pass_the_finite_difference_check(shape: tuple[int, int], unbiased: bool) -> None:
    x = features(*shape, 0).requires_grad_()
    y = features(shape[0], 5, 1).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: cka(a, b, unbiased), (x, y))
    assert torch.autograd.gradcheck(lambda a, b: hsic(a, b, unbiased), (x, y))


@EITHER
def test_features_without_structure_give_zero_and_zero_gradients(unbiased: bool) -> None:
    x = torch.ones(8, 4, requires_grad=True)
    y = features(8, 4, 0, torch.float32).requires_grad_()
    value = cka(x, y, unbiased)
    value.backward()
    assert value.item() == 0
    assert x.grad is not None
    assert y.grad is not None
    assert not x.grad.any()
    assert not y.grad.any()


@EITHER
def test_tiny_features_are_no_special_case(unbiased: bool) -> None:
    x, y = features(16, 8, 0, torch.float32), features(16, 8, 1, torch.float32)
    assert cka(1e-6 * x, y, unbiased).item() == pytest.approx(cka(x, y, unbiased).item(), abs=1e-5)


def test_autocast_does_not_lower_the_precision_of_the_gram_matrices() -> None:
    x, y = features(16, 64, 0, torch.float32), features(16, 64, 1, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = cka(x, y)
    assert under_autocast.dtype == torch.float32
    assert torch.equal(under_autocast, cka(x, y))
    assert cka(x.bfloat16(), y.bfloat16()).dtype == torch.float32


@EITHER
@pytest.mark.parametrize("n", [2, 3])
def test_too_few_samples_are_refused(n: int, unbiased: bool) -> None:
    with pytest.raises(UsageError, match="at least 4 samples"):
        cka(features(n, 8, 0), features(n, 8, 1), unbiased)
    with pytest.raises(UsageError, match="at least 4 samples"):
        hsic(features(n, 8, 0), features(n, 8, 1), unbiased)


def test_maps_and_unequal_batches_are_refused() -> None:
    with pytest.raises(UsageError, match="equally many samples"):
        cka(features(8, 4, 0), features(9, 4, 1))
    with pytest.raises(UsageError, match="equally many samples"):
        cka(torch.zeros(8, 4, 7, 7), features(8, 4, 1))


@EITHER
@pytest.mark.parametrize("widths", [(3, 2), (12, 9)])
def test_many_pairs_at_once_are_each_pair_alone(widths: tuple[int, int], unbiased: bool) -> None:
    x, y = (
        torch.stack([features(8, width, seed + width) for seed in range(5)]) for width in widths
    )
    x[0] = 1  # without structure
    x.requires_grad_()
    at_once = cka_each(x, y, unbiased)
    alone = torch.stack([cka(a, b, unbiased) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(at_once, alone)
    weights = torch.arange(1, 6, dtype=torch.float64)
    (expected,) = torch.autograd.grad(weights @ alone, x)
    torch.testing.assert_close(torch.autograd.grad(weights @ at_once, x)[0], expected)
    with pytest.raises(UsageError, match="equally many pairs"):
        cka_each(x, y[:4], unbiased)
