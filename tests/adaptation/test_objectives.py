"""LPT's loss against its formula, and the batches that it is learnt from."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from rdcache.adaptation.objectives import AsymmetricLoss, LongTailed
from rdcache.adaptation.sampling import TrainingImages
from rdcache.errors import UsageError
from rdcache.models.adapters import Classified

COUNTS = (40, 10, 2)


def imbalanced() -> Any:
    """Fifty-two training images and three others, as far as sampling looks at them."""
    labels = np.repeat([0, 1, 2], COUNTS)
    uids = [f"{number:032x}" for number in range(len(labels) + 3)]
    return SimpleNamespace(
        splits=np.array(["train"] * len(labels) + ["val"] * 3),
        labels=np.append(labels, [0, 1, 2]),
        uids=np.array(uids),
        classes=("a", "b", "c"),
        name="imbalanced",
    )


def reference(logits: Any, target: Any, draws: Any, positive: float, negative: float) -> float:
    """The sum in the docstring, term by term."""
    rarest = math.log(40) - math.log(2)
    total = 0.0
    for z, y, noise in zip(logits.tolist(), target.tolist(), draws.tolist(), strict=True):
        clouded = [
            z[j]
            - 20 * 0.5 * abs(noise[j]) * (math.log(40) - math.log(COUNTS[j])) / rarest
            - 20 * 0.1 * (j == y)
            for j in range(3)
        ]
        whole = sum(math.exp(each) for each in clouded)
        for j in range(3):
            p = math.exp(clouded[j]) / whole
            t = 0.9 * (j == y) + 0.1 / 3
            w = (1 - p) ** positive if j == y else p**negative
            total -= t * w * math.log(p)
    return total / len(target)


@pytest.mark.parametrize(("positive", "negative"), [(0.0, 4.0), (0.5, 8.0)])
def test_the_asymmetric_loss_equals_its_formula(positive: float, negative: float) -> None:
    torch.manual_seed(0)
    loss = AsymmetricLoss(COUNTS, positive, negative)
    logits = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    target, draws = torch.tensor([0, 1, 2, 2, 0]), torch.randn(5, 3, dtype=torch.float64) / 3
    expected = reference(logits, target, draws, positive, negative)
    assert loss.of_draws(logits, target, draws).item() == pytest.approx(expected, rel=1e-6)
    assert torch.autograd.gradcheck(lambda z: loss.of_draws(z, target, draws), logits)


def test_the_loss_stays_finite_where_a_probability_is_one() -> None:
    logits = torch.tensor([[40.0, -40.0, -40.0]], requires_grad=True)
    AsymmetricLoss((3, 3, 3), 0.5, 8.0)(logits, torch.tensor([0])).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all(), "equal classes are not clouded, and no slope is infinite"


def test_balanced_batches_have_all_classes_alike() -> None:
    images = TrainingImages(imbalanced(), views=3, seed=0)
    batches = images.balanced(12, 0, "groups")
    assert len(batches) == len(images.shuffled(12, 0, "groups")) == 4
    labels = imbalanced().labels
    for batch in batches:
        assert np.bincount(labels[batch.samples]).tolist() == [4, 4, 4]
    seen = np.concatenate([batch.samples for batch in batches])
    assert set(range(40, 52)) <= set(seen.tolist()), "small classes are gone through, all of them"
    again = TrainingImages(imbalanced(), views=3, seed=0).balanced(12, 0, "groups")
    assert all(np.array_equal(a.samples, b.samples) for a, b in zip(batches, again, strict=True))
    other = images.balanced(12, 1, "groups")
    assert any(
        not np.array_equal(a.samples, b.samples) for a, b in zip(batches, other, strict=True)
    )


def test_an_image_is_seen_through_all_its_views_in_as_many_epochs() -> None:
    images = TrainingImages(imbalanced(), views=3, seed=0)
    views: dict[int, set[int]] = {}
    for epoch in range(3):
        for batch in images.shuffled(4, epoch, "adapter"):
            for sample, view in zip(batch.samples.tolist(), batch.views.tolist(), strict=True):
                views.setdefault(sample, set()).add(view)
    assert sorted(views) == list(range(52)), "validation images are not among them"
    assert all(each == {0, 1, 2} for each in views.values())


def test_a_batch_larger_than_the_training_set_is_refused() -> None:
    with pytest.raises(UsageError, match=r"larger than the training set[\s\S]*52"):
        LongTailed(TrainingImages(imbalanced(), 1, 0), 53)


def test_the_weight_of_images_as_they_come_falls_to_nothing() -> None:
    objective = LongTailed(TrainingImages(imbalanced(), 1, 0), 2)
    logits, similarity = torch.zeros(4, 3), torch.tensor([1.0, 1.0, 0.5, 0.5])
    output = Classified(torch.zeros(4, 8), logits, similarity)
    target = torch.tensor([0, 0, 0, 0])  # of the largest class, which is not clouded
    first = objective.terms(output, target, "groups", 0.0)
    last = objective.terms(output, target, "groups", 1.0)
    assert first["similarity"].item() == pytest.approx(-0.5 * (1.0 + 0.5 * 0.5))
    assert last["similarity"].item() == pytest.approx(-0.5)
    assert first["agcl"] > 0
    assert last["agcl"] == 0
    assert objective.terms(output, target, "shared", 0.0).keys() == {"agcl"}
