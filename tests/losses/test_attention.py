"""Attention transfer against its formula, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import attention_map, attention_transfer


def reference_map(maps: np.ndarray, power: float) -> np.ndarray:
    """One sample after the other, one position after the other."""
    rows = []
    for sample in maps:
        energy = (np.abs(sample) ** power).sum(axis=0).ravel() / len(sample)
        rows.append(energy / np.sqrt((energy**2).sum()))
    return np.stack(rows)


@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_attention_transfer_is_the_formula(power: float) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(5, 3, 2, 4)), random.normal(size=(5, 7, 2, 4))
    expected = ((reference_map(student, power) - reference_map(teacher, power)) ** 2).mean()
    value = attention_transfer(torch.tensor(student), torch.tensor(teacher), power)
    assert value.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("power", [2.0, 3.0])
def test_gradients_pass_the_finite_difference_check(power: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(3, c, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
        for c in (2, 4)
    )
    assert torch.autograd.gradcheck(
        lambda s, t: attention_transfer(s, t, power), (student, teacher)
    )


def test_the_scale_of_a_map_says_nothing() -> None:
    maps = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(0)).double()
    assert attention_transfer(1e-3 * maps, 50 * maps).item() == pytest.approx(0, abs=1e-15)


def test_maps_without_energy_or_with_one_position_have_finite_gradients() -> None:
    for student in (torch.zeros(2, 3, 2, 2), torch.randn(2, 3, 1, 1)):
        student.requires_grad_()
        teacher = torch.randn(2, 3, *student.shape[2:])
        value = attention_transfer(student, teacher)
        value.backward()
        assert student.grad is not None
        assert torch.isfinite(student.grad).all()
    assert value.item() == pytest.approx(0, abs=1e-12)


def test_half_precision_maps_are_compared_in_float32() -> None:
    student, teacher = torch.randn(4, 3, 2, 2).half(), torch.randn(4, 3, 2, 2).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = attention_transfer(student, teacher)
    assert value.dtype == torch.float32
    assert torch.equal(value, attention_transfer(student.float(), teacher.float()))


def test_wrong_shapes_and_powers_are_refused() -> None:
    with pytest.raises(UsageError, match="same positions"):
        attention_transfer(torch.zeros(2, 3, 2, 2), torch.zeros(2, 3, 3, 3))
    with pytest.raises(UsageError, match="property of maps"):
        attention_map(torch.zeros(2, 3))
    with pytest.raises(UsageError, match="at least 1"):
        attention_map(torch.zeros(2, 3, 2, 2), 0.5)
