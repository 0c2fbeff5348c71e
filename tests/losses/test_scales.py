"""The KL over cells against a loop over cells, and which of them count double."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import kl, scale_decoupled_kl

TARGET = torch.tensor([0, 2, 1, 1])


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)


def reference(z_s: np.ndarray, z_t: np.ndarray, target: np.ndarray, temperature: float) -> float:
    """Scales 1 and 2; sides are even, so that a quarter is a slice."""
    total, cells = 0.0, 0
    for student, teacher, right in zip(z_s, z_t, target, strict=True):
        whole_is_right = teacher.mean(axis=(1, 2)).argmax() == right
        for rows, columns in [(1, 1), *[(r, c) for r in (0.0, 0.5) for c in (0.0, 0.5)]]:
            means = []
            for logits in (student, teacher):
                _, h, w = logits.shape
                if isinstance(rows, float):
                    top, left = int(rows * h), int(columns * w)
                    logits = logits[:, top : top + h // 2, left : left + w // 2]
                means.append(logits.mean(axis=(1, 2)) / temperature)
            p_s, p_t = (np.exp(z) / np.exp(z).sum() for z in means)
            differs = (means[1].argmax() == right) != whole_is_right
            total += (2.0 if differs else 1.0) * (p_t * np.log(p_t / p_s)).sum()
            cells += 1
    return temperature**2 * total / cells


def test_it_is_the_formula_over_the_whole_and_its_quarters() -> None:
    student, teacher = maps(4, 3, 2, 2), maps(4, 3, 4, 6, seed=1)
    value = scale_decoupled_kl(student, teacher, TARGET, (1, 2), 3.0)
    expected = reference(student.numpy(), teacher.numpy(), TARGET.numpy(), 3.0)
    assert value.item() == pytest.approx(expected, rel=1e-10)


def test_scale_one_alone_is_the_kl_of_the_averaged_maps() -> None:
    student, teacher = maps(4, 3, 7, 7), maps(4, 3, 3, 3, seed=1)
    value = scale_decoupled_kl(student, teacher, TARGET, (1,), 4.0)
    expected = kl(student.mean((2, 3)), teacher.mean((2, 3)), 4.0)
    assert value.item() == pytest.approx(expected.item())


def test_a_cell_counts_double_where_it_is_right_and_the_whole_is_not_or_the_other_way_round() -> (
    None
):
    # One row of two cells of one position each, side by side in a 2×2 map of equal rows.
    right, wrong = torch.tensor([3.0, 0.0]), torch.tensor([0.0, 1.0])
    teacher = torch.stack([right, wrong], dim=1)[None, :, None].expand(1, 2, 2, 2).double()
    student = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    double, single = (
        scale_decoupled_kl(student, teacher, torch.tensor([0]), (2,), 1.0, weight).item()
        for weight in (2.0, 1.0)
    )
    of_wrong = kl(torch.zeros(1, 2), wrong[None]).item()
    assert double - single == pytest.approx(of_wrong / 2, rel=1e-5)  # half of the cells are wrong
    # Labelled the other way the whole is wrong, and complemented by the cells that were wrong.
    other = scale_decoupled_kl(student, teacher, torch.tensor([1]), (2,)).item()
    assert other - single == pytest.approx(of_wrong / 2, rel=1e-5)


def test_gradients_pass_the_finite_difference_check() -> None:
    student, teacher = maps(4, 3, 3, 3).requires_grad_(), maps(4, 3, 4, 4, seed=1)
    assert torch.autograd.gradcheck(
        lambda s: scale_decoupled_kl(s, teacher, TARGET, (1, 2), 2.0), (student,)
    )


def test_autocast_does_not_lower_the_precision() -> None:
    student, teacher = maps(4, 3, 4, 4).float(), maps(4, 3, 4, 4, seed=1).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = scale_decoupled_kl(student, teacher, TARGET)
    assert torch.equal(value, scale_decoupled_kl(student, teacher, TARGET))


def test_scales_that_are_too_fine_and_wrong_shapes_are_refused() -> None:
    coarse, fine = maps(4, 3, 2, 2), maps(4, 3, 7, 7)
    for scales in [(1, 4), (0,), ()]:
        with pytest.raises(UsageError, match="coarser of the two"):
            scale_decoupled_kl(coarse, fine, TARGET, scales)
    with pytest.raises(UsageError, match="two maps of logits"):
        scale_decoupled_kl(coarse, maps(4, 2, 7, 7), TARGET, (1,))
    with pytest.raises(UsageError, match="one right class a sample"):
        scale_decoupled_kl(coarse, fine, TARGET[:2], (1,))
