"""The Gaussian likelihood against its formula, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import gaussian_nll


def test_it_is_the_density_of_the_normal_distribution() -> None:
    random = np.random.default_rng(0)
    mean, target = random.normal(size=(5, 3, 2, 2)), random.normal(size=(5, 3, 2, 2))
    variance = random.uniform(0.1, 4, size=(3, 1, 1))
    total = 0.0
    for index in np.ndindex(mean.shape):
        v = float(variance[index[1], 0, 0])
        density = math.exp(-((target[index] - mean[index]) ** 2) / (2 * v))
        total -= math.log(density / math.sqrt(2 * math.pi * v))
    expected = total / mean.size - 0.5 * math.log(2 * math.pi)
    value = gaussian_nll(*(torch.tensor(x) for x in (mean, variance, target)))
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_gradients_pass_the_finite_difference_check() -> None:
    generator = torch.Generator().manual_seed(0)
    mean, target = (
        torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    variance = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)[:, None, None].requires_grad_()
    assert torch.autograd.gradcheck(gaussian_nll, (mean, variance, target))


def test_the_best_variance_is_the_mean_squared_error() -> None:
    mean, target = torch.zeros(1000).double(), 3 * torch.randn(1000).double()
    variance = target.square().mean().requires_grad_()
    gaussian_nll(mean, variance, target).backward()
    assert variance.grad is not None
    assert variance.grad.item() == pytest.approx(0, abs=1e-12)


def test_autocast_does_not_lower_the_precision() -> None:
    mean, target = torch.randn(8, 3).bfloat16(), torch.randn(8, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = gaussian_nll(mean, torch.ones(3), target)
    assert value.dtype == torch.float32
    assert torch.equal(value, gaussian_nll(mean.float(), torch.ones(3), target))


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="one shape"):
        gaussian_nll(torch.zeros(2, 3), torch.ones(3), torch.zeros(2, 4))
