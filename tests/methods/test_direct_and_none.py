"""The two baselines: what trains when, and the plain student's single term."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional as F

from rdcache.methods import CachedBatch, MethodContext, TrainingProgress, create_method
from rdcache.models import StudentOutput

START = TrainingProgress(epoch=0, epochs=10)


def test_direct_trains_the_teacher_branch_first_and_freezes_it_then(
    context: Callable[..., MethodContext],
    batch: CachedBatch,
    student_output: Callable[[MethodContext], StudentOutput],
) -> None:
    setting = context()
    method = create_method("direct", {"width": 8}, setting)
    assert method.teacher_epochs == setting.epochs
    method.begin_stage("teacher")
    method.train()
    method.teacher_terms(batch, START)["teacher_ce"].backward()
    trained = list(method.trainable_parameters("teacher"))
    assert trained
    assert all(p.grad is not None for p in trained)
    assert not any(p is setting.classifier.weight for p in trained)

    method.begin_stage("student")
    method.train()
    method.zero_grad()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    sum(method(batch, student_output(setting), START).values()).backward()
    assert not list(method.trainable_parameters("student"))
    assert all(p.grad is None for p in method.parameters())
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name]), "batch-norm statistics moved"


def test_direct_is_cross_entropy_and_undecayed_kl(
    context: Callable[..., MethodContext],
    batch: CachedBatch,
    student_output: Callable[[MethodContext], StudentOutput],
) -> None:
    setting = context()
    method = create_method("direct", {"width": 8, "beta": 3.0, "temperature": 2.0}, setting)
    method.begin_stage("student")
    student = student_output(setting)
    terms = method(batch, student, TrainingProgress(epoch=9, epochs=10))
    z_t = method.teacher_branch(batch.taps)[1]
    p_t, p_s = (z_t / 2).softmax(1), (student.logits / 2).softmax(1)
    expected = 3.0 * 4 * (p_t * (p_t / p_s).log()).sum(1).mean()
    assert terms.keys() == {"ce", "kl"}
    assert terms["kl"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_plain_student_reads_no_tap_and_trains_nothing_besides(
    context: Callable[..., MethodContext],
    batch: CachedBatch,
    student_output: Callable[[MethodContext], StudentOutput],
) -> None:
    setting = context()
    method = create_method("none", {}, setting)
    student = student_output(setting)
    terms = method(batch, student, START)
    assert terms.keys() == {"ce"}
    assert torch.equal(terms["ce"], F.cross_entropy(student.logits, batch.target))
    assert method.taps == ()
    assert not list(method.parameters())
    assert not method.has_teacher_branch
