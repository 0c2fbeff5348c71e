"""CKA of maps: what its rows are, and which batches each form accepts."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import cka_patches, cka_pooled, cka_positions, draw_positions
from rdcache.losses.map_similarity import touched_cells


def reference(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased CKA of rows, by the formula of Song et al., in float64."""
    n = len(x)

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        K, L, one = a @ a.T, b @ b.T, np.ones(n)
        np.fill_diagonal(K, 0)
        np.fill_diagonal(L, 0)
        second = (one @ K @ one) * (one @ L @ one) / ((n - 1) * (n - 2))
        return float(np.trace(K @ L) + second - 2 / (n - 2) * (one @ K @ L @ one))

    return hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def cells(maps: torch.Tensor, factor: int) -> np.ndarray:
    """Rows of non-overlapping blocks of factor × factor positions, averaged."""
    values = maps.double().numpy()
    b, c, h, w = values.shape
    blocks = values.reshape(b, c, h // factor, factor, w // factor, factor).mean((3, 5))
    return np.asarray(np.moveaxis(blocks, 1, -1).reshape(-1, c))


def test_pooled_maps_are_compared_as_their_means() -> None:
    x, y = drawn(8, 5, 4, 4), drawn(8, 7, 2, 3, seed=1)
    expected = reference(x.double().mean((2, 3)).numpy(), y.double().mean((2, 3)).numpy())
    assert cka_pooled(x, y).item() == pytest.approx(expected, abs=1e-5)


def test_all_positions_of_a_common_grid_are_rows() -> None:
    x, y = drawn(2, 5, 8, 8), drawn(2, 7, 4, 4, seed=1)
    expected = reference(cells(x, 2), cells(y, 1))
    assert cka_positions(x, y, grid=16, count=1000).item() == pytest.approx(expected, abs=1e-5)
    coarser = reference(cells(x, 4), cells(y, 2))
    assert cka_positions(x, y, grid=2, count=1000).item() == pytest.approx(coarser, abs=1e-5)
    assert cka_patches(x, y, patches=2).item() == pytest.approx(coarser, abs=1e-5)


def test_volumes_have_positions_too() -> None:
    x = drawn(2, 5, 4, 8, 8)
    assert cka_positions(x, 3 * x + 1, grid=8, count=100).item() == pytest.approx(1, abs=1e-5)
    assert cka_patches(x, 3 * x + 1, patches=2).item() == pytest.approx(1, abs=1e-5)


def test_positions_of_two_samples_have_gradients_and_their_means_are_refused() -> None:
    x, y = drawn(2, 5, 4, 4).requires_grad_(), drawn(2, 7, 4, 4, seed=1)
    cka_positions(x, y, grid=16, count=20).backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    with pytest.raises(UsageError, match="2 are too few"):
        cka_pooled(x, y)


def test_gradients_pass_the_finite_difference_check() -> None:
    x, y = (drawn(2, 3, 4, 4, seed=seed).double().requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda a, b: cka_positions(a, b, 2, 100), (x, y))
    assert torch.autograd.gradcheck(lambda a, b: cka_patches(a, b, 2), (x, y))


def test_the_draw_follows_the_seed_and_takes_no_position_twice() -> None:
    x, y = drawn(2, 5, 8, 8), drawn(2, 7, 8, 8, seed=1)
    torch.manual_seed(3)
    first = cka_positions(x, y, grid=8, count=30)
    torch.manual_seed(3)
    assert torch.equal(cka_positions(x, y, grid=8, count=30), first)
    assert not torch.equal(cka_positions(x, y, grid=8, count=30), first)
    positions = draw_positions(128, 30, None, torch.device("cpu"))
    assert len(set(positions.tolist())) == 30


@pytest.mark.parametrize(("inside", "expected"), [(40, 15), (6, 6), (0, 0), (128, 30)])
def test_a_balanced_draw_takes_as_many_of_the_foreground_as_there_are(
    inside: int, expected: int
) -> None:
    foreground = torch.arange(128) < inside
    positions = draw_positions(128, 30, foreground, torch.device("cpu"))
    assert len(set(positions.tolist())) == 30
    assert foreground[positions].sum() == expected


def test_a_cell_with_any_foreground_counts_as_foreground() -> None:
    mask = torch.zeros(2, 16, 16)
    mask[0, 5, 9] = 1
    assert touched_cells(mask, (4, 4)).nonzero().tolist() == [[0, 1, 2]]
    assert touched_cells(mask.unsqueeze(1), (1, 4, 4)).nonzero().tolist() == [[0, 0, 1, 2]]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="equally many"):
        cka_positions(drawn(2, 5, 4, 4), drawn(3, 5, 4, 4), 4, 10)
    with pytest.raises(UsageError, match="equally many"):
        cka_patches(drawn(2, 5, 4, 4), drawn(2, 5, 4, 4, 4), 2)
