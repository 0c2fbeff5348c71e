"""Cross-fitted targets: every sample is judged by a branch that never saw it."""

from __future__ import annotations

import math
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


def test_calibrated_branches_fit_the_labels_of_what_they_have_not_seen(
    crossfit: CrossFittedBranches,
) -> None:
    """Three of four labels are the likeliest class, whose logit is 12 above the other's. The best
    temperature gives it the odds of 3 to 1.
    """
    target = torch.tensor([0, 0, 0, 1])
    sure = torch.tensor([[12.0, 0.0]]).expand(4, 2)
    loss, seen = MulticlassLoss([3, 1]), torch.tensor([0, 1, 2, 3])
    for branch in crossfit.branches:
        branch.linear = nn.Linear(2, 2)
        branch.linear.load_state_dict({"weight": torch.eye(2), "bias": torch.zeros(2)})
    crossfit.train()
    for half in (slice(0, 2), slice(2, 4)):
        crossfit.note_unseen(sure[half], seen[half], target[half])
    assert crossfit.training
    crossfit.calibrate(loss)
    assert crossfit.temperature.item() == pytest.approx(12 / math.log(3), rel=0.03)
    torch.testing.assert_close(crossfit.logits(sure, seen), sure / crossfit.temperature)
    torch.testing.assert_close(crossfit.mean_logits(sure), sure / crossfit.temperature)
    assert "temperature" in crossfit.state_dict(), "a run that is resumed later needs it"


def test_what_is_noted_leaves_no_weights_without_gradient_under_autocast(
    context: Callable[..., MethodContext], batch: CachedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever way this version of PyTorch treats casts that were made under `no_grad`."""
    options = {"width": 8, "folds": 2, "teacher_epochs": 1}
    method = create_method("rd", options, context())
    assert isinstance(method, ReprogrammingDistillation)
    assert method.crossfit is not None
    called: list[str] = []
    for name in ("loss", "note_unseen"):
        own = getattr(method.crossfit, name)
        monkeypatch.setattr(
            method.crossfit,
            name,
            lambda *given, own=own, name=name: called.append(name) or own(*given),
        )
    with torch.autocast("cpu", torch.bfloat16):
        (loss,) = method.teacher_terms(batch, TrainingProgress(0, 1, 0, 2)).values()
    loss.backward()
    assert called == ["loss", "note_unseen"]
    assert all(parameter.grad is not None for parameter in method.crossfit.parameters())


@pytest.mark.parametrize("calibrate", [True, False])
def test_rd_calibrates_the_folds_at_the_end_of_their_stage(
    calibrate: bool, context: Callable[..., MethodContext], batch: CachedBatch
) -> None:
    options = {"width": 8, "folds": 2, "teacher_epochs": 2, "calibrate_folds": calibrate}
    method = create_method("rd", options, context())
    assert isinstance(method, ReprogrammingDistillation)
    assert method.crossfit is not None
    for epoch, step in ((0, 0), (0, 1), (1, 0)):
        method.teacher_terms(batch, TrainingProgress(epoch, 2, step, 2))
    assert method.crossfit.temperature.item() == 1
    before = method.crossfit.logits(batch.taps["s4"], batch.samples)
    method.train()
    method.teacher_terms(batch, TrainingProgress(1, 2, 1, 2))
    assert (method.crossfit.temperature.item() != 1) is calibrate
    after = method.crossfit.logits(batch.taps["s4"], batch.samples)
    losses = [float(method.task_loss(logits, batch.target)) for logits in (before, after)]
    assert losses[1] < losses[0] or not calibrate


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
    target = method.crossfit.logits(batch.taps[method.tap], batch.samples)
    p_t, p_s = (target / 4).softmax(1), (student.logits / 4).softmax(1)
    expected = 16 * (p_t * (p_t / p_s).log()).sum(1).mean()
    assert kl.item() == pytest.approx(expected.item(), rel=1e-4)
    for options in ({"folds": 1}, {"folds": 2, "teacher_epochs": 0}):
        with pytest.raises(UsageError, match="folds"):
            create_method("rd", options, setting)
