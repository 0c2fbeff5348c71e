"""Attended errors across layers against their formula, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import semantic_calibration, similarity_rows

SIDES = ((4, 2), (2, 2), (1, 1))  # 3 layers of the student, 2 of the teacher


def drawn(seed: int) -> list[list[torch.Tensor]]:
    random = np.random.default_rng(seed)
    return [
        [torch.tensor(random.normal(size=(5, channels, side, side))) for side, channels in row]
        for row in ([(sides[0], 3), (sides[1], 4)] for sides in SIDES)
    ]


def attention() -> torch.Tensor:
    return torch.randn(5, 3, 2, generator=torch.Generator().manual_seed(0)).double().softmax(2)


def test_it_is_the_formula() -> None:
    mine, theirs, weights = drawn(0), drawn(1), attention()
    total = 0.0
    for b in range(5):
        for s in range(3):
            for t in range(2):
                difference = mine[s][t][b].numpy() - theirs[s][t][b].numpy()
                total += float(weights[b, s, t]) * float((difference**2).mean())
    value = semantic_calibration(weights, mine, theirs)
    assert value.item() == pytest.approx(total / (5 * 3), rel=1e-12)


def test_gradients_pass_the_finite_difference_check() -> None:
    weights = torch.rand(2, 1, 2, dtype=torch.float64, requires_grad=True)
    mine = [torch.randn(2, 3, 2, 2, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    theirs = [torch.randn(2, 3, 2, 2, dtype=torch.float64) for _ in range(2)]
    assert torch.autograd.gradcheck(
        lambda a, x, y: semantic_calibration(a, [[x, y]], [theirs]), (weights, *mine)
    )


def test_similarities_are_mean_products_over_a_map() -> None:
    maps = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    rows = similarity_rows(maps)
    for i in range(4):
        for j in range(4):
            expected = (maps[i] * maps[j]).mean().item()
            assert rows[i, j].item() == pytest.approx(expected, rel=1e-12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert similarity_rows(maps.bfloat16()).dtype == torch.float32


def test_shapes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(UsageError, match="each sample, student layer and teacher layer"):
        semantic_calibration(attention()[:, :2], drawn(0), drawn(1))
    with pytest.raises(UsageError, match="one shape"):
        semantic_calibration(torch.ones(2, 1, 1), [[torch.ones(2, 3)]], [[torch.ones(2, 4)]])
