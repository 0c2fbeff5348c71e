"""DKD, DIST and KD on standardised logits: their terms, and what two classes leave of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from rdcache.errors import UsageError
from rdcache.methods import (
    CachedBatch,
    Method,
    MethodContext,
    TrainingProgress,
    create_method,
    task_loss,
)
from rdcache.models import StudentOutput
from rdcache.store import TapSpec

BATCH = 8
END = TrainingProgress(epoch=9, epochs=10)


class Setting:
    """A context of some classes, a batch whose store holds logits, and a student's output."""

    def __init__(self, context: Callable[..., MethodContext], classes: int) -> None:
        generator = torch.Generator().manual_seed(4)
        taps = {"logits": TapSpec("logits", "logits", (classes,))}
        self.context = context(
            taps=taps, num_classes=classes, task_loss=task_loss("multiclass", [4] * classes)
        )
        teacher = 2 * torch.randn(BATCH, classes, generator=generator)
        self.batch = CachedBatch(
            torch.arange(BATCH), {"logits": teacher}, torch.arange(BATCH) % classes
        )
        logits = 2 * torch.randn(BATCH, classes, generator=generator)
        self.student = StudentOutput(torch.zeros(BATCH, 1), logits.requires_grad_(), {})

    def terms(
        self, name: str, progress: TrainingProgress = END, **options: Any
    ) -> dict[str, torch.Tensor]:
        return self.method(name, **options)(self.batch, self.student, progress)

    def method(self, name: str, **options: Any) -> Method:
        method = create_method(name, options, self.context)
        method.begin_stage("student")
        return method

    @property
    def z_s(self) -> np.ndarray:
        return self.student.logits.detach().double().numpy()

    @property
    def z_t(self) -> np.ndarray:
        return self.batch.taps["logits"].double().numpy()


@pytest.fixture
def of_classes(context: Callable[..., MethodContext]) -> Callable[[int], Setting]:
    return lambda classes: Setting(context, classes)


OfClasses = Callable[[int], Setting]


def softmax(z: np.ndarray) -> np.ndarray:
    return np.asarray(np.exp(z) / np.exp(z).sum(axis=1, keepdims=True))


def divergence(z_t: np.ndarray, z_s: np.ndarray) -> float:
    p_t, p_s = softmax(z_t), softmax(z_s)
    return float((p_t * np.log(p_t / p_s)).sum(axis=1).mean())


def test_dkd_weighs_both_parts_of_the_kl(of_classes: OfClasses) -> None:
    setting = of_classes(4)
    terms = setting.terms("dkd", weight=0.5, alpha=2.0, beta=3.0, temperature=4.0)
    p_s, p_t = softmax(setting.z_s / 4), softmax(setting.z_t / 4)
    tckd = nckd = 0.0
    for i, right in enumerate(setting.batch.target.tolist()):
        b_s, b_t = ([p[i, right], 1 - p[i, right]] for p in (p_s, p_t))
        tckd += sum(t * np.log(t / s) for s, t in zip(b_s, b_t, strict=True)) / BATCH
        q_s, q_t = (np.delete(p[i], right) / (1 - p[i, right]) for p in (p_s, p_t))
        nckd += (q_t * np.log(q_t / q_s)).sum() / BATCH
    assert terms.keys() == {"ce", "tckd", "nckd"}
    assert terms["tckd"].item() == pytest.approx(0.5 * 2 * 16 * tckd, rel=1e-4)
    assert terms["nckd"].item() == pytest.approx(0.5 * 3 * 16 * nckd, rel=1e-4)


def test_dkd_rises_to_its_weight_in_the_first_twelfth_of_training(of_classes: OfClasses) -> None:
    setting = of_classes(4)
    full = setting.terms("dkd")["nckd"].item()
    half = setting.terms("dkd", TrainingProgress(epoch=5, epochs=120))["nckd"].item()
    at_once = setting.terms("dkd", TrainingProgress(epoch=0, epochs=120), warmup=0.0)["nckd"].item()
    assert half == pytest.approx(full / 2, rel=1e-5)
    assert at_once == pytest.approx(full)
    assert setting.terms("dkd", TrainingProgress(epoch=0, epochs=120))["nckd"].item() == 0


def test_with_two_classes_dkd_is_kd(of_classes: OfClasses) -> None:
    setting = of_classes(2)
    terms = setting.terms("dkd", temperature=4.0)
    assert terms.keys() == {"ce", "tckd"}
    expected = 16 * divergence(setting.z_t / 4, setting.z_s / 4)
    assert terms["tckd"].item() == pytest.approx(expected, rel=1e-4)
    with pytest.raises(UsageError, match="two classes and alpha 0"):
        setting.method("dkd", alpha=0.0)


def test_dist_weighs_correlations_between_and_within_classes(of_classes: OfClasses) -> None:
    setting = of_classes(4)
    terms = setting.terms("dist", beta=2.0, gamma=3.0)
    y_s, y_t = softmax(setting.z_s), softmax(setting.z_t)
    rows = np.mean([np.corrcoef(s, t)[0, 1] for s, t in zip(y_s, y_t, strict=True)])
    columns = np.mean([np.corrcoef(s, t)[0, 1] for s, t in zip(y_s.T, y_t.T, strict=True)])
    assert terms.keys() == {"ce", "inter", "intra"}
    assert terms["inter"].item() == pytest.approx(2 * 2 * (1 - rows), rel=1e-4)
    assert terms["intra"].item() == pytest.approx(2 * 3 * (1 - columns), rel=1e-4)


def test_with_two_classes_dist_keeps_the_part_that_has_a_gradient(of_classes: OfClasses) -> None:
    setting = of_classes(2)
    terms = setting.terms("dist")
    assert terms.keys() == {"ce", "intra"}
    (gradient,) = torch.autograd.grad(terms["intra"], setting.student.logits)
    assert gradient.abs().max() > 1e-3
    with pytest.raises(UsageError, match="two classes and gamma 0"):
        setting.method("dist", gamma=0.0)


def test_dist_refuses_batches_of_two(context: Callable[..., MethodContext]) -> None:
    with pytest.raises(UsageError, match="batch of 2 is too small"):
        create_method("dist", {}, context(batch_size=2))


def test_standardised_kd_is_the_kl_of_z_scores_at_two_standard_deviations(
    of_classes: OfClasses,
) -> None:
    setting = of_classes(4)
    z_s, z_t = (
        (z - z.mean(1, keepdims=True)) / z.std(1, keepdims=True, ddof=1)
        for z in (setting.z_s, setting.z_t)
    )
    terms = setting.terms("kd-standardised")
    assert terms.keys() == {"ce", "kl"}
    assert terms["kl"].item() == pytest.approx(9 * 4 * divergence(z_t / 2, z_s / 2), rel=1e-4)


def test_standardised_kd_refuses_two_classes_and_names_kd(of_classes: OfClasses) -> None:
    with pytest.raises(UsageError, match=r"no gradient[\s\S]*--method kd"):
        of_classes(2).method("kd-standardised")


@pytest.mark.parametrize("name", ["dkd", "dist", "kd-standardised"])
def test_only_the_student_moves_and_without_logits_they_refuse(
    name: str, of_classes: OfClasses
) -> None:
    setting = of_classes(3)
    method = setting.method(name)
    torch.stack(list(method(setting.batch, setting.student, END).values())).sum().backward()
    assert not list(method.trainable_parameters("student"))
    with pytest.raises(UsageError, match="needs logits of the teacher"):
        setting.method(name, teacher_head="none")
