"""Losses on relations between samples, against loops over samples in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.losses import cc, pkt, rkd_angle, rkd_distance, sp

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def huber(difference: float) -> float:
    return difference**2 / 2 if abs(difference) < 1 else abs(difference) - 0.5


def sp_reference(x: np.ndarray, y: np.ndarray) -> float:
    grams = [features @ features.T for features in (x, y)]
    scaled = [gram / np.sqrt((gram**2).sum(1, keepdims=True)) for gram in grams]
    return float(((scaled[0] - scaled[1]) ** 2).sum() / len(x) ** 2)


def distance_reference(x: np.ndarray, y: np.ndarray) -> float:
    n = len(x)

    def scaled(z: np.ndarray) -> np.ndarray:
        d = np.array([[np.linalg.norm(z[i] - z[j]) for j in range(n)] for i in range(n)])
        return np.asarray(d / d[d > 0].mean())

    d_x, d_y = scaled(x), scaled(y)
    return float(np.mean([huber(d_x[i, j] - d_y[i, j]) for i in range(n) for j in range(n)]))


def cosine(u: np.ndarray, v: np.ndarray) -> float:
    norms = np.linalg.norm(u) * np.linalg.norm(v)
    return float(u @ v / norms) if norms else 0.0


def angle_reference(x: np.ndarray, y: np.ndarray) -> float:
    n = range(len(x))
    errors = [
        huber(cosine(x[j] - x[i], x[k] - x[i]) - cosine(y[j] - y[i], y[k] - y[i]))
        for i in n
        for j in n
        for k in n
    ]
    return float(np.mean(errors))


def pkt_reference(x: np.ndarray, y: np.ndarray) -> float:
    n = range(len(x))

    def neighbours(z: np.ndarray) -> np.ndarray:
        similarity = np.array([[(cosine(z[i], z[j]) + 1) / 2 for j in n] for i in n])
        return np.asarray(similarity / similarity.sum(1, keepdims=True))

    p_s, p_t = neighbours(x), neighbours(y)
    return float(np.mean(p_t * np.log((p_t + 1e-7) / (p_s + 1e-7))))


def cc_reference(x: np.ndarray, y: np.ndarray) -> float:
    delta = np.abs(x - y)
    return float(np.mean([delta[i] @ delta[i + 1] for i in range(len(x) - 1)]))


LOSSES = {
    "sp": (sp, sp_reference),
    "rkd_distance": (rkd_distance, distance_reference),
    "rkd_angle": (rkd_angle, angle_reference),
    "pkt": (pkt, pkt_reference),
    "cc": (cc, cc_reference),
}
EVERY = pytest.mark.parametrize(("loss", "reference"), LOSSES.values(), ids=LOSSES)
SCALE_FREE = pytest.mark.parametrize("loss", [sp, rkd_distance, rkd_angle, pkt])


def features(n: int, d: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@EVERY
def test_a_relation_is_its_formula(loss: Loss, reference: Callable[..., float]) -> None:
    x, y = 3 * features(6, 5, 0) + 2, features(6, 5, 1)
    expected = reference(x.numpy(), y.numpy())
    assert loss(x, y).item() == pytest.approx(expected, rel=1e-9)
    assert loss(x.float(), y.float()).item() == pytest.approx(expected, rel=1e-4)


@EVERY
def test_gradients_pass_the_finite_difference_check(loss: Loss, reference: object) -> None:
    x, y = features(5, 4, 2).requires_grad_(), features(5, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(loss, (x, y))


@SCALE_FREE
def test_other_widths_and_scales_are_the_same_relations(loss: Loss) -> None:
    x, y = features(6, 5, 0), features(6, 5, 1)
    rotation = torch.linalg.qr(features(9, 9, 4)).Q[:5]
    assert loss(x, 50 * y @ rotation).item() == pytest.approx(loss(x, y).item(), rel=1e-9)
    assert loss(y @ rotation, 0.1 * y).item() == pytest.approx(0, abs=1e-9)
    maps = y.reshape(6, 5, 1, 1)
    assert loss(x, maps).item() == pytest.approx(loss(x, y).item(), rel=1e-9)


@SCALE_FREE
@pytest.mark.parametrize("coinciding", ["two", "all", "none there"])
def test_samples_that_coincide_leave_gradients_finite(loss: Loss, coinciding: str) -> None:
    x, y = features(6, 5, 0, torch.float32), features(6, 5, 1, torch.float32)
    if coinciding == "two":
        x[1] = x[0]
    elif coinciding == "all":
        x[:] = x[0].clone()
    else:
        x[0] = 0
    x.requires_grad_()
    value = loss(x, y)
    value.backward()
    assert value.isfinite()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert x.grad.abs().max() < 100


@EVERY
def test_autocast_does_not_lower_the_precision(loss: Loss, reference: object) -> None:
    x, y = features(6, 5, 0, torch.float32), features(6, 5, 1, torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(x.bfloat16(), y.bfloat16())
    assert value.dtype == torch.float32
    assert torch.equal(value, loss(x.bfloat16().float(), y.bfloat16().float()))


@EVERY
def test_unequal_and_too_small_batches_are_refused(loss: Loss, reference: object) -> None:
    with pytest.raises(UsageError, match="equally many samples"):
        loss(features(6, 5, 0), features(7, 5, 1))
    with pytest.raises(UsageError, match="at least"):
        loss(features(1, 5, 0), features(1, 5, 1))


def test_embeddings_of_other_widths_are_refused_by_cc() -> None:
    with pytest.raises(UsageError, match="one width"):
        cc(features(6, 5, 0), features(6, 4, 1))


@pytest.mark.parametrize(
    ("loss", "reference"),
    [(rkd_distance, distance_reference), (rkd_angle, angle_reference)],
    ids=["distance", "angle"],
)
def test_rows_that_differ_little_from_a_large_common_one_are_apart(
    loss: Loss, reference: Callable[[np.ndarray, np.ndarray], float]
) -> None:
    x = 1 + 5e-4 * features(8, 512, seed=0, dtype=torch.float32)
    y = features(8, 512, seed=1, dtype=torch.float32)
    expected = reference(x.double().numpy(), y.double().numpy())
    assert expected > 1e-4
    assert loss(x, y).item() == pytest.approx(expected, rel=1e-2)
    same = x[:1].expand(8, -1)
    everything_coincides = loss(same, same + 0.0)
    assert everything_coincides.item() == 0
