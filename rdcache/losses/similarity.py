"""Similarity of two representations of the same samples: HSIC and CKA with a linear kernel.

Written for features (n, d) of one batch. With K = XXᵀ and L = YYᵀ,

    biased    HSIC   = tr(KHLH) / (n−1)²,                       H = I − 11ᵀ/n
    unbiased  HSIC₁  = [tr(K̃L̃) + 1ᵀK̃1·1ᵀL̃1/((n−1)(n−2)) − 2/(n−2)·1ᵀK̃L̃1] / (n(n−3)),
              K̃ = K without its diagonal (Song et al., JMLR 2012)
    CKA = HSIC(K, L) / √(HSIC(K, K)·HSIC(L, L))

Features are centred first, which changes neither and keeps the numbers small; then row i of K̃ sums
to −k_ii, and both estimators are inner products of matrices that cost one Gram product each.
"""

from __future__ import annotations

import torch

from rdcache.errors import UsageError

MIN_SAMPLES = 4  # HSIC₁ divides by n−3; the biased estimate is 1 for any two centred points


def hsic(x: torch.Tensor, y: torch.Tensor, unbiased: bool = True) -> torch.Tensor:
    """Hilbert–Schmidt independence criterion of two sets of features, linear kernel.

    Args:
        x: (n, d_x) features; row i of both belongs to the same sample.
        y: (n, d_y).
        unbiased: HSIC₁ instead of tr(KHLH)/(n−1)².

    Raises:
        UsageError: other shapes, or fewer than 4 samples.
    """
    _check(x, y)
    n = len(x)
    with torch.autocast(x.device.type, enabled=False):
        product = _inner_product(_centred(x), _centred(y), unbiased)
    return product / (n * (n - 3) if unbiased else (n - 1) ** 2)


def cka(x: torch.Tensor, y: torch.Tensor, unbiased: bool = True, eps: float = 1e-8) -> torch.Tensor:
    """Centred kernel alignment of two sets of features, linear kernel; 1 means the same geometry.

    Does not change when either side is translated, rotated or scaled. With n below the features'
    effective dimension the biased estimate is close to 1 for *unrelated* features (0.94 at n = 32,
    d = 512) while the unbiased one is 0 on average; a biased value is not comparable across batch
    sizes. Computed in float32 at least, also under autocast.

    Args:
        x: (n, d_x) features; row i of both belongs to the same sample.
        y: (n, d_y).
        unbiased: estimate with HSIC₁.
        eps: where the centred features of one side hold less than this share of structure (all
            rows equal, or all equally far apart), the result is 0 and so are its gradients.

    Returns:
        Scalar; in [0, 1] biased, in [−1, 1] unbiased.

    Raises:
        UsageError: other shapes, or fewer than 4 samples.
    """
    _check(x, y)
    with torch.autocast(x.device.type, enabled=False):
        x, y = _unit_scale(_centred(x)), _unit_scale(_centred(y))
        cross = _inner_product(x, y, unbiased)
        own_x, own_y = _inner_product(x, x, unbiased), _inner_product(y, y, unbiased)
        defined = (own_x > eps) & (own_y > eps)
        # Replaced before the root, not after it: the gradient of √0 would be infinite.
        norms = torch.where(defined, own_x * own_y, torch.ones_like(own_x)).sqrt()
        return torch.where(defined, cross / norms, torch.zeros_like(cross))


def cka_each(x: torch.Tensor, y: torch.Tensor, unbiased: bool = True) -> torch.Tensor:
    """Compute the CKA of each of k pairs of features, at once.

    Args:
        x: (k, n, d_x) features; row i of both belongs to the same sample.
        y: (k, n, d_y).
        unbiased: as for `cka`, like all else.

    Returns:
        (k,).

    Raises:
        UsageError: other shapes, or fewer than 4 samples.
    """
    if x.ndim != 3 or y.ndim != 3 or len(x) != len(y):
        raise UsageError(
            "pairs of features are two (pair, sample, feature) tensors of equally many pairs.",
            x=tuple(x.shape),
            y=tuple(y.shape),
        )
    each: torch.Tensor = torch.vmap(lambda a, b: cka(a, b, unbiased))(x, y)
    return each


def _check(x: torch.Tensor, y: torch.Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise UsageError(
            "features are compared as two (sample, feature) tensors of equally many samples.",
            x=tuple(x.shape),
            y=tuple(y.shape),
        )
    if len(x) < MIN_SAMPLES:
        raise UsageError(
            f"CKA and HSIC need at least {MIN_SAMPLES} samples.",
            samples=len(x),
            why="two centred points are always collinear, so every pair of features looks alike",
        )


def _centred(features: torch.Tensor) -> torch.Tensor:
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return features - features.mean(dim=0)


def _unit_scale(centred: torch.Tensor) -> torch.Tensor:
    """Divide by the Frobenius norm, as a constant: CKA is scale-free, so its gradient is exact."""
    norm = centred.detach().norm()
    return centred / norm.clamp_min(torch.finfo(centred.dtype).tiny)


def _inner_product(x: torch.Tensor, y: torch.Tensor, unbiased: bool) -> torch.Tensor:
    """⟨K̂, L̂⟩ of the centred (or U-centred) Gram matrices, through the smaller matrices."""
    n = len(x)
    if n <= max(x.shape[1], y.shape[1]):
        grams = x @ x.T, y @ y.T
        if unbiased:
            grams = _u_centred(grams[0]), _u_centred(grams[1])
        return (grams[0] * grams[1]).sum()
    product = (x.T @ y).square().sum()
    if not unbiased:
        return product
    k, m = x.square().sum(1), y.square().sum(1)  # the diagonals of K and L
    return product - n / (n - 2) * (k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2))


def _u_centred(gram: torch.Tensor) -> torch.Tensor:
    """K̃_ij − r_i/(n−2) − r_j/(n−2) + s/((n−1)(n−2)) off the diagonal, 0 on it.

    The features being centred, the row sums r of K̃ are −k_ii and their total s is −tr K.
    """
    n = len(gram)
    diagonal = gram.diagonal()
    rows = diagonal / (n - 2)
    centred = gram + rows[:, None] + rows[None, :] - diagonal.sum() / ((n - 1) * (n - 2))
    return centred - torch.diag(centred.diagonal())
