"""Dice against its formula in float64, and what happens where there is nothing to overlap."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import dice


def reference(logits: np.ndarray, target: np.ndarray, over: str, first: int) -> float:
    """1 − (2·Σpg + s) / (Σp + Σg + s), class by class, in float64."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    p = powers / powers.sum(axis=1, keepdims=True)
    groups = [list(range(len(logits)))] if over == "batch" else [[i] for i in range(len(logits))]
    each = []
    for group in groups:
        for c in range(first, logits.shape[1]):
            g, found = target[group] == c, p[group, c]
            each.append(1 - (2 * found[g].sum() + 1e-5) / (found.sum() + g.sum() + 1e-5))
    return float(np.mean(each))


@pytest.mark.parametrize("over", ["sample", "batch"])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("sides", [(5, 4), (3, 4, 2)])
def test_dice_is_the_formula(over: str, first: int, sides: tuple[int, ...]) -> None:
    random = np.random.default_rng(0)
    logits, target = random.normal(size=(3, 4, *sides)), random.integers(0, 4, size=(3, *sides))
    value = dice(torch.tensor(logits), torch.tensor(target), over, include_background=first == 0)
    assert value.item() == pytest.approx(reference(logits, target, over, first), rel=1e-12)


def test_a_perfect_prediction_costs_nothing_also_where_a_class_is_absent() -> None:
    target = torch.zeros(2, 6, 6, dtype=torch.long)
    target[0, :3] = 1
    logits = 50 * torch.nn.functional.one_hot(target, 3).movedim(-1, 1).float()
    assert dice(logits, target).item() == pytest.approx(0, abs=1e-4)
    missed = torch.zeros_like(target)
    assert dice(50 * torch.nn.functional.one_hot(missed, 3).movedim(-1, 1).float(), target) > 0.2


def test_gradients_pass_the_finite_difference_check() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 3, (2, 2, 2), generator=generator)
    for over in ("sample", "batch"):
        assert torch.autograd.gradcheck(lambda z, over=over: dice(z, target, over), (logits,))


def test_half_precision_is_summed_in_float32() -> None:
    logits, target = torch.randn(2, 3, 8, 8).bfloat16(), torch.zeros(2, 8, 8, dtype=torch.long)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = dice(logits, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, dice(logits.float(), target))


def test_what_has_no_overlap_is_refused() -> None:
    target = torch.zeros(2, 4, 4, dtype=torch.long)
    with pytest.raises(UsageError, match="a class for each position"):
        dice(torch.zeros(2, 3, 4, 5), target)
    with pytest.raises(UsageError, match="no class but background"):
        dice(torch.zeros(2, 1, 4, 4), target)
    with pytest.raises(UsageError, match="each sample or the batch"):
        dice(torch.zeros(2, 2, 4, 4), target, over="image")
