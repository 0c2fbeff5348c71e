"""Losses on maps, against formulas written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn

from rdcache.errors import UsageError
from rdcache.losses import direction_error, hcl, without_dc


def maps(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def block_means(x: np.ndarray, side: int) -> np.ndarray:
    """Average to side × side, for sides that divide."""
    b, c, h, w = x.shape
    return np.asarray(x.reshape(b, c, side, h // side, side, w // side).mean((3, 5)))


def test_hcl_weighs_coarser_grids_by_halves() -> None:
    x, y = maps(2, 3, 8, 8, seed=0), maps(2, 3, 8, 8, seed=1)
    weights = {8: 1.0, 4: 0.5, 2: 0.25, 1: 0.125}
    errors = {
        side: ((block_means(x.numpy(), side) - block_means(y.numpy(), side)) ** 2).mean()
        for side in weights
    }
    expected = sum(weights[side] * errors[side] for side in weights) / 1.875
    assert hcl(x, y).item() == pytest.approx(expected, rel=1e-12)


def test_hcl_leaves_out_grids_that_are_not_coarser() -> None:
    x, y = maps(2, 3, 2, 2, seed=0), maps(2, 3, 2, 2, seed=1)
    coarse = ((block_means(x.numpy(), 1) - block_means(y.numpy(), 1)) ** 2).mean()
    expected = (((x - y) ** 2).mean().item() + 0.5 * coarse) / 1.5
    assert hcl(x, y).item() == pytest.approx(expected, rel=1e-12)
    vectors = maps(2, 3, 1, 1, seed=0), maps(2, 3, 1, 1, seed=1)
    assert hcl(*vectors).item() == pytest.approx(((vectors[0] - vectors[1]) ** 2).mean().item())


def test_the_error_of_directions_is_two_minus_two_cosines_of_every_position() -> None:
    x, y = 3 * maps(2, 5, 3, 4, seed=0), maps(2, 5, 3, 4, seed=1)
    total = 0.0
    for sample in range(2):
        for row in range(3):
            for column in range(4):
                u, v = x[sample, :, row, column].numpy(), y[sample, :, row, column].numpy()
                total += 2 - 2 * u @ v / np.sqrt((u @ u) * (v @ v))
    assert direction_error(x, y).item() == pytest.approx(total / 2, rel=1e-12)


def test_removing_the_mean_is_removing_the_lowest_coefficient_of_the_cosine_transform() -> None:
    x = maps(2, 3, 5, 7, seed=0)
    coefficients = dctn(x.numpy(), type=2, axes=(2, 3))
    coefficients[:, :, 0, 0] = 0
    expected = idctn(coefficients, type=2, axes=(2, 3))
    np.testing.assert_allclose(without_dc(x).numpy(), expected, atol=1e-12)


def test_what_rounding_leaves_of_a_constant_map_has_no_direction() -> None:
    x = (torch.rand(2, 64, 1, 1, generator=torch.Generator().manual_seed(0)) * 3 + 1).expand(
        -1, -1, 7, 7
    )
    noise = x - x.mean((2, 3), keepdim=True)
    assert noise.any(), "there is rounding to be left"
    assert not without_dc(x).any()
    some = x.clone().requires_grad_()
    with torch.no_grad():
        some[0, :, 2, 3] += 1
    left = without_dc(some)
    assert left[0].any()
    assert not left[1].any()
    direction_error(left, maps(2, 64, 7, 7, seed=1, dtype=torch.float32)).backward()
    assert some.grad is not None
    assert some.grad[0].any()
    assert not some.grad[1].any()


@pytest.mark.parametrize("loss", [hcl, direction_error])
def test_gradients_pass_the_finite_difference_check(loss: object) -> None:
    x = maps(2, 2, 3, 3, seed=0).requires_grad_()
    y = maps(2, 2, 3, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(loss, (x, y))
    assert torch.autograd.gradcheck(without_dc, (x,))


def test_a_position_without_activation_has_no_direction_and_no_gradient() -> None:
    x = torch.zeros(2, 3, 1, 1, requires_grad=True)
    value = direction_error(x, torch.ones(2, 3, 1, 1))
    value.backward()
    assert value.item() == pytest.approx(1)
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("loss", [hcl, direction_error])
def test_half_precision_is_compared_in_float32_and_other_shapes_are_refused(loss: object) -> None:
    assert callable(loss)
    x, y = maps(2, 3, 4, 4, seed=0).half(), maps(2, 3, 4, 4, seed=1).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x, y)
    assert torch.equal(value, loss(x.float(), y.float()))
    with pytest.raises(UsageError, match="one shape"):
        loss(x, y[:, :, :2])
