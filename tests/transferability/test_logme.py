"""LogME against the marginal likelihood of the same model, written densely in float64.

With w ~ N(0, I/α) and y = Fw + noise of precision β, y is normal with mean 0 and covariance
FFᵀ/α + I/β: nothing of the formula under test is needed to say how likely it is.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import optimize

from rdcache.errors import UsageError
from rdcache.transferability import logme
from rdcache.transferability.logme import maximal_evidence
from rdcache.transferability.principal_axes import PrincipalAxes

SHAPES = {"tall": (40, 6), "square": (20, 20), "wide": (15, 50)}


def marginal_likelihood(F: np.ndarray, y: np.ndarray, alpha: float, beta: float) -> float:
    covariance = F @ F.T / alpha + np.eye(len(y)) / beta
    _, log_determinant = np.linalg.slogdet(2 * np.pi * covariance)
    return float(-0.5 * (y @ np.linalg.solve(covariance, y) + log_determinant))


def invented(shape: tuple[int, int], signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(3)
    F = random.normal(0.5, 1, shape) * np.geomspace(0.1, 10, shape[1])
    return F, (signal * F[:, 0] / 0.1 + random.normal(0, 1, shape[0]) > 0.3).astype(float)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_no_alpha_and_beta_make_the_labels_more_likely(shape: tuple[int, int]) -> None:
    F, y = invented(shape)
    found = maximal_evidence(PrincipalAxes.of(torch.from_numpy(F)), torch.from_numpy(y))
    n = len(y)
    assert found.log * n == pytest.approx(
        marginal_likelihood(F, y, found.alpha, found.beta), rel=1e-6
    )

    def loss(log_precisions: np.ndarray) -> float:
        return -marginal_likelihood(F, y, *np.exp(log_precisions))

    grid = [(a, b) for a in np.linspace(-8, 8, 17) for b in np.linspace(-4, 8, 13)]
    start = min(grid, key=loss)
    elsewhere = optimize.minimize(loss, start, method="Nelder-Mead", options={"fatol": 1e-9})
    assert found.log * n >= -elsewhere.fun - 1e-5


def test_the_maximum_is_a_fixed_point_of_the_paper() -> None:
    F, y = invented(SHAPES["tall"])
    found = maximal_evidence(PrincipalAxes.of(torch.from_numpy(F)), torch.from_numpy(y))
    A = found.alpha * np.eye(F.shape[1]) + found.beta * F.T @ F
    m = found.beta * np.linalg.solve(A, F.T @ y)
    gamma = found.beta * np.trace(np.linalg.solve(A, F.T @ F))
    assert found.alpha == pytest.approx(gamma / (m @ m), rel=1e-4)
    residual = F @ m - y
    assert found.beta == pytest.approx((len(y) - gamma) / (residual @ residual), rel=1e-4)


def test_it_is_the_mean_over_the_classes_that_occur() -> None:
    F, y = invented(SHAPES["tall"])
    labels = np.where(y > 0, 2, np.arange(len(y)) % 2)
    axes = PrincipalAxes.of(torch.from_numpy(F))
    each = [
        maximal_evidence(axes, torch.from_numpy((labels == c).astype(float))).log for c in range(3)
    ]
    found = logme(torch.from_numpy(F), torch.from_numpy(labels), 5)
    assert found == pytest.approx(np.mean(each))


def test_features_that_tell_the_classes_apart_score_higher_than_noise() -> None:
    random = np.random.default_rng(0)
    labels = torch.from_numpy(random.integers(0, 3, 200))
    noise = torch.from_numpy(random.normal(0, 1, (200, 30)))
    telling = noise.clone()
    telling[:, :3] += 2 * torch.nn.functional.one_hot(labels, 3)
    assert logme(telling, labels, 3) > logme(noise, labels, 3) + 0.05


def test_scale_and_rotation_do_not_matter() -> None:
    F, y = invented(SHAPES["tall"])
    features, labels = torch.from_numpy(F), torch.from_numpy(y).long()
    rotation = torch.linalg.qr(torch.from_numpy(np.random.default_rng(1).normal(size=(6, 6))))[0]
    turned = logme(features @ rotation * 1e3, labels, 2)
    assert turned == pytest.approx(logme(features, labels, 2), abs=1e-6)


def test_features_that_are_zero_explain_the_labels_as_noise_does() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    expected = np.mean([-0.5 * (np.log(2 * np.pi * share) + 1) for share in (0.75, 0.25)])
    assert logme(torch.zeros(4, 3), labels, 2) == pytest.approx(expected)
    barely = 1e-9 * torch.ones(4, 3)
    assert logme(barely, labels, 2) > expected, "a constant channel is an intercept"


def test_without_samples_there_is_no_evidence() -> None:
    with pytest.raises(UsageError, match="samples"):
        logme(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long), 2)
