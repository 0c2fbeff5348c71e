"""N-to-one matching against its formula, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import many_to_one


def test_it_is_the_sum_of_every_groups_error() -> None:
    random = np.random.default_rng(0)
    predictions, target = random.normal(size=(4, 6, 2, 3)), random.normal(size=(4, 2, 2, 3))
    expected = sum(((predictions[:, 2 * n : 2 * n + 2] - target) ** 2).mean() for n in range(3))
    value = many_to_one(torch.tensor(predictions), torch.tensor(target))
    assert value.item() == pytest.approx(expected, rel=1e-12)


def test_gradients_pass_the_finite_difference_check() -> None:
    predictions = torch.randn(2, 4, 2, 1, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 2, 2, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(many_to_one, (predictions, target))


def test_shapes_that_do_not_go_together_are_refused() -> None:
    for shape in ((2, 5, 2, 2), (2, 4, 3, 3), (2, 1, 2, 2)):
        with pytest.raises(UsageError, match="multiple of their target's channels"):
            many_to_one(torch.zeros(shape), torch.zeros(2, 2, 2, 2))
