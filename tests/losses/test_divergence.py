"""The KL term: its value, its direction, its temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import kl


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
