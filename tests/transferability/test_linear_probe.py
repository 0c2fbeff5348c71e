from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

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
