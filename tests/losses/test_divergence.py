"""The KL terms: their value, their direction, their temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import binary_kl, kl, position_kl


def reference(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """τ²·mean over the batch of Σ p_t·log(p_t/p_s), in float64."""

    def softmax(logits: np.ndarray) -> np.ndarray:
        powers = np.exp(logits / temperature)
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    p_t, p_s = softmax(teacher), softmax(student)
    return float(temperature**2 * (p_t * np.log(p_t / p_s)).sum(axis=1).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_kl_is_the_formula(temperature: float) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(5, 3)), random.normal(size=(5, 3))
    value = kl(torch.tensor(student), torch.tensor(teacher), temperature)
    assert value.item() == pytest.approx(reference(student, teacher, temperature), rel=1e-12)


def test_the_teacher_is_the_target_distribution() -> None:
    # p_t = (½, ½) and p_s = (¾, ¼): KL(p_t‖p_s) = ½·ln(½/¾) + ½·ln(½/¼), the reverse is another.
    teacher, student = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    assert kl(student, teacher).item() == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert kl(teacher, student).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_equal_predictions_cost_nothing() -> None:
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert kl(logits, logits + 7, 4.0).item() == pytest.approx(0, abs=1e-6)


def test_gradients_pass_the_finite_difference_check() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    assert torch.autograd.gradcheck(lambda s, t: kl(s, t, 3.0), (student, teacher))


def test_half_precision_logits_are_compared_in_float32() -> None:
    student, teacher = torch.randn(4, 3).half(), torch.randn(4, 3).half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = kl(student, teacher, 4.0)
    assert value.dtype == torch.float32
    assert torch.equal(value, kl(student.float(), teacher.float(), 4.0))


def test_wrong_shapes_and_temperatures_are_refused() -> None:
    with pytest.raises(UsageError, match="one shape"):
        kl(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(UsageError, match="positive"):
        kl(torch.zeros(2, 3), torch.zeros(2, 3), 0.0)


def binary_reference(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """τ²·KL of two coins, mean over samples and classes, in float64."""
    p_t, p_s = (1 / (1 + np.exp(-logits / temperature)) for logits in (teacher, student))
    present, absent = p_t * np.log(p_t / p_s), (1 - p_t) * np.log((1 - p_t) / (1 - p_s))
    return float(temperature**2 * (present + absent).mean())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_binary_kl_is_the_formula(temperature: float) -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(5, 14)), random.normal(size=(5, 14))
    value = binary_kl(torch.tensor(student), torch.tensor(teacher), temperature)
    assert value.item() == pytest.approx(binary_reference(student, teacher, temperature), rel=1e-12)


def test_binary_kl_is_finite_where_the_teacher_is_sure() -> None:
    student = torch.tensor([[-90.0, 90.0]], requires_grad=True)
    value = binary_kl(student, torch.tensor([[200.0, -200.0]]))
    value.backward()
    assert value.item() == pytest.approx(90)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("loss", [binary_kl, lambda s, t, τ: position_kl(s, t, τ)])
def test_gradients_of_the_other_tasks_pass_the_finite_difference_check(loss: object) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (4, 3) if loss is binary_kl else (2, 3, 2, 2)
    student, teacher = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for _ in range(2)
    )
    assert torch.autograd.gradcheck(lambda s, t: loss(s, t, 3.0), (student, teacher))  # type: ignore[operator]


@pytest.mark.parametrize("sides", [(3, 5), (2, 3, 2)])
def test_kl_of_positions_is_that_of_as_many_samples(sides: tuple[int, ...]) -> None:
    random = np.random.default_rng(1)
    student, teacher = random.normal(size=(4, 3, *sides)), random.normal(size=(4, 3, *sides))
    value = position_kl(torch.tensor(student), torch.tensor(teacher), 2.0)
    rows = [np.moveaxis(logits, 1, -1).reshape(-1, 3) for logits in (student, teacher)]
    assert value.item() == pytest.approx(reference(rows[0], rows[1], 2.0), rel=1e-12)


def test_kl_of_positions_does_not_depend_on_the_size_of_the_image() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    larger = [it.repeat_interleave(3, 2).repeat_interleave(3, 3) for it in (student, teacher)]
    expected = position_kl(student, teacher, 4.0).item()
    assert position_kl(larger[0], larger[1], 4.0).item() == pytest.approx(expected, rel=1e-5)


def test_balanced_kl_weighs_foreground_as_much_as_all_the_rest() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    foreground = torch.zeros(2, 4, 4, dtype=torch.bool)
    foreground[0, 0, :3] = True
    value = position_kl(student, teacher, 2.0, foreground).item()
    rows = [it.movedim(1, -1).double().numpy() for it in (student, teacher)]
    inside, outside = (
        reference(rows[0][which], rows[1][which], 2.0)
        for which in (foreground.numpy(), ~foreground.numpy())
    )
    assert value == pytest.approx((inside + outside) / 2, rel=1e-5)
    for all_of_one in (torch.zeros_like(foreground), torch.ones_like(foreground)):
        assert position_kl(student, teacher, 2.0, all_of_one).item() == pytest.approx(
            position_kl(student, teacher, 2.0).item(), rel=1e-5
        )


def test_other_shapes_are_refused_for_positions_too() -> None:
    with pytest.raises(UsageError, match="one shape"):
        position_kl(torch.zeros(2, 3), torch.zeros(2, 3))
    with pytest.raises(UsageError, match="position of the foreground"):
        position_kl(torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4), 1.0, torch.ones(2, 4, 5) > 0)
    with pytest.raises(UsageError, match="one shape"):
        binary_kl(torch.zeros(2, 3), torch.zeros(2, 4))
