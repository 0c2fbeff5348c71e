"""Samples seen along their own principal axes, min(n, D) of them at most.

A linear model of features that is penalised evenly in all directions lies in the span of the
samples, and does not change under rotation: on these axes it is small, and its curvature nearly
diagonal. The samples are taken as they are; who wants them centred or standardised does so before.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# Axes whose share of the largest axis's variance is below this are rounding errors of the product.
LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class PrincipalAxes:
    """Samples in coordinates along their own principal axes.

    Attributes:
        axes: float64 (D, r), orthonormal.
        coordinates: float64 (n, r), the samples times the axes.
        variances: float64 (r,), mean square of each coordinate.
    """

    axes: torch.Tensor
    coordinates: torch.Tensor
    variances: torch.Tensor

    @classmethod
    def of(cls, samples: torch.Tensor) -> PrincipalAxes:
        """Decompose samples, float64 (n, D), through the smaller of their two products."""
        n, dimension = samples.shape
        narrow = n > dimension
        squares, vectors = torch.linalg.eigh(samples.T @ samples if narrow else samples @ samples.T)
        kept = squares > LEAST_VARIANCE * squares[-1].clamp_min(torch.finfo(squares.dtype).tiny)
        squares, vectors = squares[kept], vectors[:, kept]
        if narrow:
            return cls(vectors, samples @ vectors, squares / n)
        coordinates = vectors * squares.sqrt()
        return cls(samples.T @ (vectors / squares.sqrt()), coordinates, squares / n)
