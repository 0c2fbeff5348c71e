"""MLKD: two views of a sample, three levels, five temperatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.methods import (
    CachedBatch,
    MethodContext,
    TrainingProgress,
    create_method,
    task_loss,
)
from rdcache.methods.mlkd import MultiLevelDistillation
from rdcache.models import StudentOutput
from rdcache.store import TapSpec

BuildContext = Callable[..., MethodContext]
START = TrainingProgress(epoch=0, epochs=10)
SAMPLES = 6


def softmax(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True))


def setting(
    context: BuildContext, classes: int, **options: Any
) -> tuple[MultiLevelDistillation, CachedBatch, StudentOutput]:
    """The method, and a batch of two views of each sample, with the teacher's logits stored."""
    generator = torch.Generator().manual_seed(5)
    build = context(
        taps={"logits": TapSpec("logits", "logits", (classes,))},
        num_classes=classes,
        task_loss=task_loss("multiclass", [4] * classes),
        batch_size=SAMPLES,
    )
    method = create_method("mlkd", options, build)
    assert isinstance(method, MultiLevelDistillation)
    method.begin_stage("student")
    rows, target = torch.arange(SAMPLES).repeat(2), torch.arange(SAMPLES).repeat(2) % classes
    teacher = 2 * torch.randn(2 * SAMPLES, classes, generator=generator)
    logits = 2 * torch.randn(2 * SAMPLES, classes, generator=generator)
    student = StudentOutput(torch.zeros(2 * SAMPLES, 1), logits.requires_grad_(), {})
    return method, CachedBatch(rows, {"logits": teacher}, target), student


def reference(
    batch: CachedBatch, student: StudentOutput, temperatures: tuple[float, ...], masked: bool
) -> dict[str, float]:
    """Every level, in float64; weight 1 and averaged over both views."""
    z_t = batch.taps["logits"].double().numpy()
    z_s = student.logits.detach().double().numpy()
    classes = z_t.shape[1]
    p = softmax(z_t[:SAMPLES])
    m = p.max(axis=1) <= np.median(p.max(axis=1)) if masked else np.ones(SAMPLES)
    n = p.sum(axis=0) <= np.median(p.sum(axis=0)) if masked else np.ones(classes)
    sums = {"instance": 0.0, "class": 0.0, "batch": 0.0}
    for tau in temperatures:
        y_s, y_t = softmax(z_s / tau), softmax(z_t / tau)
        kl = tau**2 * (y_t * np.log(y_t / y_s)).sum(axis=1)
        sums["instance"] += (m * kl[:SAMPLES]).mean() + kl[SAMPLES:].mean()
        y_s, y_t = y_s[:SAMPLES], y_t[:SAMPLES]
        of_classes = (n[:, None] * (y_t.T @ y_t - y_s.T @ y_s) ** 2).sum() / classes
        sums["class"] += of_classes / (SAMPLES / classes) ** 2
        sums["batch"] += (m[:, None] * (y_t @ y_t.T - y_s @ y_s.T) ** 2).sum() / SAMPLES
    return {name: value / 2 for name, value in sums.items()}


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("mask", ["unsure", "none"])
def test_the_three_levels_are_their_formulas(
    context: BuildContext, classes: int, mask: str
) -> None:
    method, batch, student = setting(
        context, classes, weight=3.0, class_weight=0.5, batch_weight=2.0, mask=mask
    )
    terms = method(batch, student, START)
    expected = reference(batch, student, (2, 3, 4, 5, 6), mask == "unsure")
    assert terms.keys() == {"ce", "instance", "class", "batch"}
    assert terms["instance"].item() == pytest.approx(3 * expected["instance"], rel=1e-4)
    assert terms["class"].item() == pytest.approx(3 * 0.5 * expected["class"], rel=1e-4)
    assert terms["batch"].item() == pytest.approx(3 * 2 * expected["batch"], rel=1e-4)


def test_both_views_are_learned_from_labels_and_teacher(context: BuildContext) -> None:
    method, batch, student = setting(context, 3)
    assert method.views_each == 2
    terms = method(batch, student, START)
    halves = student.logits.detach().chunk(2)
    ce = [method.task_loss(half, batch.target[:SAMPLES]).item() for half in halves]
    assert terms["ce"].item() == pytest.approx(np.mean(ce), rel=1e-5)
    (gradient,) = torch.autograd.grad(terms["instance"], student.logits)
    assert gradient[SAMPLES:].abs().sum(dim=1).min() > 0  # unmasked: every second view counts


def test_samples_that_the_teacher_is_surest_of_are_masked(context: BuildContext) -> None:
    method, *_ = setting(context, 3)
    teacher = torch.tensor([[9.0, 0, 0], [1, 0, 0], [0, 8, 0], [0, 2, 0], [0, 0, 7], [0, 0, 3]])
    samples, classes = method.masks(teacher)
    assert samples.tolist() == [0, 1, 0, 1, 0, 1]
    assert 1 <= classes.sum() <= 2


def test_a_store_of_one_view_is_refused(context: BuildContext) -> None:
    with pytest.raises(UsageError, match=r"two views of each sample[\s\S]*extract"):
        create_method("mlkd", {}, context(views=1))
    with pytest.raises(UsageError, match="temperatures are positive"):
        create_method("mlkd", {"temperatures": (2.0, 0.0)}, context())


def test_a_plain_kl_may_stand_beside_it(context: BuildContext) -> None:
    method, batch, student = setting(context, 3, kd_weight=1.0)
    assert {"kd", "instance"} <= method(batch, student, START).keys()
