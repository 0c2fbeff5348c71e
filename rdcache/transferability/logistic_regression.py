"""Multinomial logistic regression with an L2 penalty, solved to convergence in float64.

    minimise over A, b:   (1/n) Σᵢ CE(zᵢAᵀ + b, yᵢ) + l2/2 · ‖A‖²

The features z are coordinates along principal axes (`principal_axes.py`). There the curvature is
nearly diagonal, and L-BFGS on axes rescaled by it needs few steps. One decomposition serves all
strengths of the penalty, and all folds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize
from threadpoolctl import threadpool_limits

# The largest entry of the mean loss's gradient on the rescaled axes: of a solution, and of one that
# is only compared with others.
CONVERGED = 1e-6
COMPARABLE = 1e-4
MOST_STEPS = 500
CURVATURE = 0.25  # of the cross-entropy in a logit, at most


@dataclass(frozen=True)
class Solution:
    """Weights on the principal axes: float64 (C, r), and biases: float64 (C,)."""

    weight: torch.Tensor
    bias: torch.Tensor

    def logits(self, coordinates: torch.Tensor) -> torch.Tensor:
        """(n, r) → (n, C)."""
        return coordinates @ self.weight.T + self.bias


def minimise(
    coordinates: torch.Tensor,
    labels: torch.Tensor,
    variances: torch.Tensor,
    l2: float,
    start: Solution,
    tolerance: float = CONVERGED,
) -> Solution:
    """Find the one minimum, beginning at `start`.

    Args:
        coordinates: float64 (n, r).
        labels: int64 (n,), within the classes that `start` has.
        variances: float64 (r,), of the coordinates or nearly so; they decide the rescaling only.
    """
    scales = (CURVATURE * variances + l2).sqrt()
    shape = start.weight.shape
    rows = torch.arange(len(labels))

    def unpacked(flat: np.ndarray) -> Solution:
        values = torch.from_numpy(flat)
        return Solution(values[: -shape[0]].view(shape) / scales, values[-shape[0] :])

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        solution = unpacked(flat)
        log_p = solution.logits(coordinates).log_softmax(dim=1)
        loss = -log_p[rows, labels].mean() + l2 / 2 * solution.weight.square().sum()
        residual = log_p.exp()
        residual[rows, labels] -= 1
        residual /= len(labels)
        by_weight = (residual.T @ coordinates + l2 * solution.weight) / scales
        gradient = torch.cat([by_weight.flatten(), residual.sum(dim=0)])
        return float(loss), gradient.numpy()

    # SciPy's and PyTorch's threads spin while they wait for one another between thousands of small
    # steps: with two threads each, ranking took more than three times as long as with one.
    with threadpool_limits(limits=1):
        found = optimize.minimize(
            loss_and_gradient,
            torch.cat([(start.weight * scales).flatten(), start.bias]).numpy(),
            jac=True,
            method="L-BFGS-B",
            options={"gtol": tolerance, "ftol": 0.0, "maxiter": MOST_STEPS, "maxcor": 20},
        )
    return unpacked(found.x.copy())
