"""TCKD and NCKD against their formulas, and what two classes leave of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import decoupled_kl, kl


def reference(
    z_s: np.ndarray, z_t: np.ndarray, target: np.ndarray, temperature: float
) -> tuple[float, float]:
    """Sample by sample, from probabilities."""
    tckd, nckd = [], []
    for student, teacher, right in zip(z_s, z_t, target, strict=True):
        p_s, p_t = (
            np.exp(z / temperature) / np.exp(z / temperature).sum() for z in (student, teacher)
        )
        b_s, b_t = (np.array([p[right], 1 - p[right]]) for p in (p_s, p_t))
        tckd.append((b_t * np.log(b_t / b_s)).sum())
        q_s, q_t = (np.delete(p, right) / (1 - p[right]) for p in (p_s, p_t))
        nckd.append((q_t * np.log(q_t / q_s)).sum())
    return temperature**2 * float(np.mean(tckd)), temperature**2 * float(np.mean(nckd))


def logits(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


TARGET = torch.tensor([0, 3, 1, 1, 2, 0])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_both_parts_are_their_formulas(temperature: float) -> None:
    student, teacher = logits(6, 4), logits(6, 4, seed=1)
    values = decoupled_kl(student, teacher, TARGET, temperature)
    expected = reference(student.numpy(), teacher.numpy(), TARGET.numpy(), temperature)
    assert [value.item() for value in values] == pytest.approx(expected, rel=1e-10)


def test_the_parts_make_up_the_whole() -> None:
    """KL = TCKD + (1 − p_t,y)·NCKD, for a single sample."""
    student, teacher, right = logits(1, 5), logits(1, 5, seed=1), torch.tensor([2])
    tckd, nckd = decoupled_kl(student, teacher, right, 3.0)
    doubt = 1 - (teacher / 3.0).softmax(1)[0, 2]
    assert (tckd + doubt * nckd).item() == pytest.approx(kl(student, teacher, 3.0).item())


def test_of_two_classes_the_first_part_is_all_and_the_second_nothing() -> None:
    student, teacher = logits(6, 2).requires_grad_(), logits(6, 2, seed=1)
    tckd, nckd = decoupled_kl(student, teacher, TARGET % 2, 4.0)
    assert tckd.item() == pytest.approx(kl(student, teacher, 4.0).item())
    (gradient,) = torch.autograd.grad(nckd, student)
    assert nckd.item() == 0
    assert not gradient.any()


def test_a_teacher_that_is_sure_gives_finite_values_and_gradients() -> None:
    teacher = torch.tensor([[200.0, 0.0, -3.0], [0.0, 0.0, 300.0]])
    student = torch.zeros(2, 3, requires_grad=True)
    for value in decoupled_kl(student, teacher, torch.tensor([0, 1])):
        (gradient,) = torch.autograd.grad(value, student, retain_graph=True)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_gradients_pass_the_finite_difference_check() -> None:
    student, teacher = logits(6, 4).requires_grad_(), logits(6, 4, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, t: decoupled_kl(s, t, TARGET, 3.0), (student, teacher)
    )


def test_autocast_does_not_lower_the_precision() -> None:
    student, teacher = logits(6, 4).float(), logits(6, 4, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        values = decoupled_kl(student, teacher, TARGET)
    assert values == decoupled_kl(student, teacher, TARGET)


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="one shape"):
        decoupled_kl(logits(6, 4), logits(6, 3), TARGET)
    with pytest.raises(UsageError, match="one right class a row"):
        decoupled_kl(logits(6, 4), logits(6, 4), TARGET[:3])
    with pytest.raises(UsageError, match="at least two classes"):
        decoupled_kl(logits(6, 1), logits(6, 1), TARGET)
