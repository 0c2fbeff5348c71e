"""LogME: how well a linear model of the features explains the labels, without training one.

You et al., "LogME: Practical Assessment of Pre-trained Models for Transfer Learning", ICML 2021.
For each class, y ∈ {0, 1}ⁿ says which samples are of it, and the features F (n, D) explain it by a
Bayesian linear regression, w ~ N(0, I/α) and y ~ N(Fw, I/β), whose evidence is

    log p(y | F, α, β) = n/2·log β + D/2·log α − n/2·log 2π
                         − β/2·‖Fm − y‖² − α/2·‖m‖² − ½·log|A|,
    A = αI + βFᵀF,   m = βA⁻¹Fᵀy.

LogME is its maximum over α and β, divided by n, and averaged over the classes. It measures how well
the training samples are explained and charges for what the explanation takes, so that no sample has
to be held out. Features are taken as the teacher gave them, as in the paper.

With F = U·diag(σ)·Vᵀ, z = Uᵀy and t = α/β, the best β for a given t is n/Q(t), and one variable is
left:

    log p = n/2·log(n / (2π·Q(t))) − n/2 − ½·Σᵢ log(1 + σᵢ²/t),
    Q(t) = Σᵢ zᵢ²·t/(t + σᵢ²) + ‖y‖² − ‖z‖².

The paper finds a stationary point of it by iterating a fixed point from α = β = 1. There may be
several, and the iteration may need thousands of steps: we look along t on a grid, and refine the
best place.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize

from rdcache.errors import UsageError
from rdcache.transferability.principal_axes import PrincipalAxes

# Where t is looked for, in largest σ²: below, the noise is rounding errors; above, no w is left.
LEAST_SHARE, LARGEST_SHARE = 1e-12, 1e6
GRID = 73  # four places for each power of ten
PRECISION = 1e-6  # of log t


@dataclass(frozen=True)
class Evidence:
    """The evidence at its maximum, for one class.

    Attributes:
        log: log p(y | F, α, β) / n.
        alpha: precision of the weights.
        beta: precision of the noise.
    """

    log: float
    alpha: float
    beta: float


def logme(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> float:
    """Mean over classes of the maximised log evidence per sample; larger is better.

    It can be compared between features of the same samples, of any width. Classes without a sample
    do not count.

    Args:
        features: (n, D) in any floating dtype.
        labels: int64 (n,), 0 to `num_classes` − 1.

    Raises:
        UsageError: no sample.
    """
    if not len(features):
        raise UsageError("LogME needs samples.", features=tuple(features.shape))
    axes = PrincipalAxes.of(features.double())
    targets = [(labels == label).double() for label in range(num_classes)]
    return float(np.mean([maximal_evidence(axes, y).log for y in targets if y.any()]))


def maximal_evidence(axes: PrincipalAxes, target: torch.Tensor) -> Evidence:
    """Maximise the evidence of one target, float64 (n,), that is not all zero.

    Features that are all zero explain nothing: what is left is the evidence of noise.
    """
    n = len(target)
    squares = (axes.variances * n).numpy()  # σ²
    z = (axes.coordinates.T @ target).numpy() / np.sqrt(squares)
    total = float(target.square().sum())
    if not len(z):
        return Evidence(-0.5 * (math.log(2 * math.pi * total / n) + 1), math.inf, n / total)
    # Exactly 0 where the features span everything; elsewhere no less than rounding errors.
    outside = 0.0 if len(z) >= n else max(total - float(z @ z), np.finfo(float).eps * total)

    def rest(log_t: float) -> float:
        t = math.exp(log_t)
        return float((z**2 * (t / (t + squares))).sum()) + outside

    def loss(log_t: float) -> float:
        occam = float(np.log1p(squares * math.exp(-log_t)).sum())
        return 0.5 * (n * math.log(2 * math.pi * rest(log_t) / n) + n + occam)

    shares = np.linspace(math.log(LEAST_SHARE), math.log(LARGEST_SHARE), GRID)
    grid = shares + math.log(squares.max())
    best = int(np.argmin([loss(place) for place in grid]))
    found = optimize.minimize_scalar(
        loss,
        bounds=(grid[max(best - 1, 0)], grid[min(best + 1, GRID - 1)]),
        method="bounded",
        options={"xatol": PRECISION},
    )
    # At an end of the grid the refinement stops short of it.
    log_t = min((float(found.x), float(grid[best])), key=loss)
    beta = n / rest(log_t)
    return Evidence(-loss(log_t) / n, math.exp(log_t) * beta, beta)
