"""Cross-fitted targets: every sample is judged by a branch that never saw it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rdcache.errors import UsageError
from rdcache.methods import CachedBatch, MethodContext, TrainingProgress, create_method
from rdcache.methods.crossfit import CrossFittedBranches
from rdcache.methods.rd import ReprogrammingDistillation
from rdcache.methods.task_losses import MulticlassLoss
from rdcache.models import StudentOutput

FOLDS = torch.tensor([0, 1, 2, 0, 1, 2, -1, 0])
SAMPLES = torch.tensor([5, 0, 3, 1, 2, 7])


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, tap: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tap, self.linear(tap)


@pytest.fixture
def crossfit() -> CrossFittedBranches:
    torch.manual_seed(0)
    return CrossFittedBranches(Branch, FOLDS)


def test_logits_come_from_the_branch_of_the_samples_own_fold(crossfit: CrossFittedBranches) -> None:
    tap = torch.randn(6, 4)
    logits = crossfit.logits(tap, SAMPLES)
    for row, sample in enumerate(SAMPLES):
        branch = crossfit.branches[int(FOLDS[sample])]
        torch.testing.assert_close(logits[row], branch(tap[row])[1])
    assert not logits.requires_grad


def test_a_branch_is_trained_on_the_other_folds_alone(crossfit: CrossFittedBranches) -> None:
    tap, target = torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = crossfit.loss(tap, SAMPLES, target, MulticlassLoss([2, 2, 2]))
    expected = torch.zeros(())
    for fold, branch in enumerate(crossfit.branches):
        seen = FOLDS[SAMPLES] != fold
        expected = expected + F.cross_entropy(branch(tap[seen])[1], target[seen])
    torch.testing.assert_close(loss, expected)
    # What fold 0 holds does not move the branch of fold 0, and moves the others.
    changed = torch.where((FOLDS[SAMPLES] == 0)[:, None], tap + 1, tap)
    gradients = [
        torch.autograd.grad(
            crossfit.loss(inputs, SAMPLES, target, MulticlassLoss([2, 2, 2])),
            [branch.linear.weight for branch in crossfit.branches],  # type: ignore[misc,union-attr]
        )
        for inputs in (tap, changed)
    ]
    equal = [torch.equal(*pair) for pair in zip(*gradients, strict=True)]
    assert equal == [True, False, False]


def test_other_splits_are_judged_by_all_branches_together(crossfit: CrossFittedBranches) -> None:
    tap = torch.randn(5, 4)
    mean = torch.stack([branch(tap)[1] for branch in crossfit.branches]).mean(0)
    torch.testing.assert_close(crossfit.mean_logits(tap), mean)


def test_rd_takes_its_kl_target_from_the_folds_and_trains_them_first(
    context: Callable[..., MethodContext],
    batch: CachedBatch,
    student_output: Callable[[MethodContext], StudentOutput],
) -> None:
    setting = context()
    method = create_method("rd", {"width": 8, "folds": 2, "teacher_epochs": 3}, setting)
    assert isinstance(method, ReprogrammingDistillation)
    assert method.crossfit is not None
    start = TrainingProgress(0, 10)
    assert method.teacher_epochs == 3
    assert method.teacher_terms(batch, start).keys() == {"fold_ce"}
    first = set(method.trainable_parameters("teacher"))
    assert first == set(method.crossfit.parameters())
    assert not first & set(method.trainable_parameters("student"))

    student = student_output(setting)
    kl = method(batch, student, start)["kl"]
    target = method.crossfit.logits(batch.taps["s4"], batch.samples)
    p_t, p_s = (target / 4).softmax(1), (student.logits / 4).softmax(1)
    expected = 16 * (p_t * (p_t / p_s).log()).sum(1).mean()
    assert kl.item() == pytest.approx(expected.item(), rel=1e-4)
    for options in ({"folds": 1}, {"folds": 2, "teacher_epochs": 0}):
        with pytest.raises(UsageError, match="folds"):
            create_method("rd", options, setting)
