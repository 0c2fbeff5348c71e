"""The probe against scikit-learn, and how it chooses its penalty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from rdcache.errors import UsageError
from rdcache.transferability import fit_linear_probe


def blobs(
    count: int, dimension: int, classes: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Correlated features around a centre for each class, channels of very different scales."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, count)
    centres = np.random.default_rng(7).normal(0, 1.5, (classes, dimension))
    mixing = np.random.default_rng(8).normal(0, 1, (dimension, dimension))
    features = centres[labels] + random.normal(0, 1, (count, dimension)) @ mixing
    scaled = features * np.geomspace(0.01, 100, dimension) + 5
    return torch.from_numpy(scaled), torch.from_numpy(labels)


@pytest.mark.parametrize(("count", "dimension"), [(150, 12), (40, 60)], ids=["tall", "wide"])
@pytest.mark.parametrize("classes", [2, 4])
def test_a_probe_is_the_logistic_regression_that_scikit_learn_finds(
    count: int, dimension: int, classes: int
) -> None:
    features, labels = blobs(count, dimension, classes)
    validation = blobs(60, dimension, classes, seed=1)
    probe = fit_linear_probe(features, labels, classes, validation=validation)

    x = features.numpy()
    mean, std = x.mean(axis=0), x.std(axis=0)
    std = np.maximum(std, 0.05 * np.sort(std)[(dimension - 1) // 2])
    # Of two classes scikit-learn penalises the difference of the weights, which is twice either.
    strength = probe.l2 * count / (2 if classes == 2 else 1)
    reference = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=10_000)
    reference.fit((x - mean) / std, labels.numpy())
    expected = reference.predict_log_proba((validation[0].numpy() - mean) / std)
    found = probe.logits(validation[0]).log_softmax(dim=1)
    torch.testing.assert_close(found.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
    accuracy = reference.score((validation[0].numpy() - mean) / std, validation[1].numpy())
    assert probe.validation_accuracy == pytest.approx(accuracy)


def test_the_penalty_is_the_one_that_validation_samples_prefer() -> None:
    features, labels = blobs(60, 20, 3)
    easy = fit_linear_probe(features, labels, 3, validation=(features, labels))
    guesses = labels[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    hard = fit_linear_probe(features, labels, 3, validation=(features, guesses))
    assert easy.l2 < 0.01 < 1 < hard.l2
    assert easy.validation_accuracy == 1


def test_without_validation_samples_folds_choose_and_judge() -> None:
    features, labels = blobs(120, 10, 3)
    probe = fit_linear_probe(features, labels, 3)
    unseen, truth = blobs(2000, 10, 3, seed=1)
    accuracy = float((probe.logits(unseen).argmax(1) == truth).double().mean())
    assert probe.validation_accuracy == pytest.approx(accuracy, abs=0.1)
    guesses = labels[torch.randperm(120, generator=torch.Generator().manual_seed(0))]
    by_chance = fit_linear_probe(features, guesses, 3)
    assert by_chance.validation_accuracy < 0.5, "the folds are judged by who has not seen them"


def test_folds_part_no_group() -> None:
    random = np.random.default_rng(0)
    patients = np.repeat(np.arange(40), 4)
    # A patient's images are nearly alike, and say nothing of the label that they share.
    features = random.normal(0, 1, (40, 60))[patients] + random.normal(0, 0.01, (160, 60))
    x, labels = torch.from_numpy(features), torch.from_numpy(random.integers(0, 2, 40)[patients])
    parted = fit_linear_probe(x, labels, 2)
    assert parted.validation_accuracy > 0.9, "the others of its patient have been seen"
    together = fit_linear_probe(x, labels, 2, groups=patients)
    assert together.validation_accuracy < 0.7
    assert together.l2 > parted.l2
    one = fit_linear_probe(x, labels, 2, groups=np.zeros(160, np.int64))
    assert (one.l2, one.validation_accuracy) == (parted.l2, parted.validation_accuracy)
    with pytest.raises(UsageError, match="a group for each sample"):
        fit_linear_probe(x, labels, 2, groups=patients[1:])


def test_the_same_samples_give_the_same_probe() -> None:
    features, labels = blobs(24, 4, 3)
    first, second = (fit_linear_probe(features, labels, 3) for _ in range(2))
    assert torch.equal(first.weight, second.weight)
    assert (first.l2, first.validation_accuracy) == (second.l2, second.validation_accuracy)


def test_constant_channels_and_missing_classes_do_no_harm() -> None:
    features, labels = blobs(60, 5, 3)
    features[:, 2] = 7.25
    probe = fit_linear_probe(features, labels, 4)
    logits = probe.logits(features + torch.tensor([0, 0, 1e-6, 0, 0]))
    assert torch.isfinite(logits).all()
    assert (logits.argmax(1) < 3).all()
    torch.testing.assert_close(logits, probe.logits(features), atol=1e-3, rtol=0)


def test_features_that_say_nothing_give_the_frequencies_of_the_classes() -> None:
    labels = torch.tensor([0] * 6 + [1] * 2)
    probe = fit_linear_probe(torch.full((8, 3), 2.0), labels, 2)
    p = probe.logits(torch.full((1, 3), 2.0)).softmax(1)
    torch.testing.assert_close(p, torch.tensor([[0.75, 0.25]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("features", "labels"),
    [
        (torch.zeros(4, 3, 2), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(4, 3), torch.zeros(5, dtype=torch.long)),
        (torch.zeros(4, 3), torch.full((4,), 2)),
        (torch.full((4, 3), torch.nan), torch.zeros(4, dtype=torch.long)),
        (torch.zeros(1, 3), torch.zeros(1, dtype=torch.long)),
    ],
    ids=["map", "count", "label", "nan", "one"],
)
def test_what_cannot_be_probed_is_refused(features: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(UsageError):
        fit_linear_probe(features, labels, 2)
