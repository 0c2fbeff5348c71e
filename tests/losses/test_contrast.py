"""Noise-contrastive estimation against its formula, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import noise_contrast


def test_it_is_the_formula() -> None:
    random = np.random.default_rng(0)
    positive, negatives = random.uniform(0, 2, size=4), random.uniform(0, 2, size=(4, 7))
    counts, noise = random.integers(0, 5, size=(4, 7)), 1.7
    kept = np.log(positive / (positive + noise))
    rejected = (counts * np.log(noise / (negatives + noise))).sum(axis=1)
    logs = torch.tensor(positive).log(), torch.tensor(negatives).log()
    value = noise_contrast(*logs, noise, torch.tensor(counts))
    assert value.item() == pytest.approx(-(kept + rejected).mean(), rel=1e-12)
    once = noise_contrast(*logs, noise, torch.ones(4, 7))
    assert noise_contrast(*logs, noise).item() == pytest.approx(once.item(), rel=1e-12)


def test_gradients_pass_the_finite_difference_check() -> None:
    generator = torch.Generator().manual_seed(0)
    positive, negatives = (
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((3,), (3, 5))
    )
    counts = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda p, n: noise_contrast(p, n, 0.6, counts), (positive, negatives)
    )


def test_extreme_probabilities_do_not_overflow() -> None:
    value = noise_contrast(torch.tensor([200.0]), torch.full((1, 3), -200.0), 1.0)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(noise_contrast(torch.tensor([-200.0]), torch.full((1, 3), 200.0), 1.0))


def test_wrong_shapes_and_noise_are_refused() -> None:
    with pytest.raises(UsageError, match="one positive pair"):
        noise_contrast(torch.zeros(2), torch.zeros(3, 4), 1.0)
    with pytest.raises(UsageError, match="a count for each"):
        noise_contrast(torch.zeros(2), torch.zeros(2, 4), 1.0, torch.ones(2, 3))
    with pytest.raises(UsageError, match="positive"):
        noise_contrast(torch.zeros(2), torch.zeros(2, 4), 0.0)
