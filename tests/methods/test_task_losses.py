"""What each task asks of logits, in float64 from the formulas."""

from __future__ import annotations

import pytest
import torch

from rdcache import losses
from rdcache.errors import UsageError
from rdcache.methods import task_loss


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_each_label_has_its_own_binary_cross_entropy() -> None:
    logits, target = drawn(6, 4), (drawn(6, 4, seed=1) > 0).float()
    p = 1 / (1 + (-logits).exp())
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    assert task_loss("multilabel", [1, 1, 1, 1])(logits, target).item() == pytest.approx(
        expected.item(), rel=1e-9
    )


def test_balanced_labels_weigh_presence_by_how_rare_it_is() -> None:
    logits, target = drawn(6, 2), (drawn(6, 2, seed=1) > 0).float()
    p, weight = 1 / (1 + (-logits).exp()), torch.tensor([8 / 2, 5 / 5], dtype=torch.float64)
    expected = -(weight * target * p.log() + (1 - target) * (1 - p).log()).mean()
    loss = task_loss("multilabel", [2, 5], class_weights="balanced", samples=10)
    assert loss(logits, target).item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(UsageError, match="number of samples"):
        task_loss("multilabel", [2, 5], class_weights="balanced")


def test_smoothed_labels_are_neither_present_nor_absent() -> None:
    logits, target = drawn(6, 2), (drawn(6, 2, seed=1) > 0).float()
    soft = task_loss("multilabel", [1, 1])(logits, target * 0.8 + 0.1)
    smoothed = task_loss("multilabel", [1, 1], label_smoothing=0.2)(logits, target)
    assert smoothed.item() == pytest.approx(soft.item(), rel=1e-6)


@pytest.mark.parametrize("sides", [(4, 5), (2, 3, 4)])
def test_masks_ask_for_cross_entropy_and_dice(sides: tuple[int, ...]) -> None:
    logits = drawn(2, 3, *sides)
    target = torch.randint(0, 3, (2, *sides), generator=torch.Generator().manual_seed(1))
    log_p = logits.log_softmax(1).gather(1, target.unsqueeze(1))
    expected = -log_p.mean() + losses.dice(logits, target)
    loss = task_loss("segmentation", [5, 3, 2])
    assert loss(logits, target).item() == pytest.approx(expected.item(), rel=1e-9)
    weights = torch.tensor([10 / (3 * n) for n in (5, 3, 2)], dtype=torch.float64)[target]
    weighed = -(weights * log_p.squeeze(1)).sum() / weights.sum() + losses.dice(logits, target)
    balanced = task_loss("segmentation", [5, 3, 2], class_weights="balanced").double()
    assert balanced(logits, target).item() == pytest.approx(weighed.item(), rel=1e-6)


def test_predictions_are_compared_as_their_task_has_them() -> None:
    mine, theirs = drawn(4, 3), drawn(4, 3, seed=1)
    maps = drawn(4, 3, 2, 2), drawn(4, 3, 2, 2, seed=1)
    for task, logits, expected in (
        ("multiclass", (mine, theirs), losses.kl),
        ("multilabel", (mine, theirs), losses.binary_kl),
        ("segmentation", maps, losses.position_kl),
    ):
        assert torch.equal(task_loss(task, [1, 1, 1]).kl(*logits, 4.0), expected(*logits, 4.0))


def test_a_task_without_a_loss_is_refused() -> None:
    with pytest.raises(UsageError, match="'detection' has no loss"):
        task_loss("detection", [1])
