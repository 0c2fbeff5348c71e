"""Nearest neighbours against a loop in NumPy, float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rdcache.transferability import knn_scores


def by_hand(features: np.ndarray, labels: np.ndarray, query: np.ndarray) -> np.ndarray:
    cosines = [x @ query / (np.linalg.norm(x) * np.linalg.norm(query)) for x in features]
    votes = np.zeros(4)
    for nearest in sorted(range(len(features)), key=lambda i: -cosines[i])[:20]:
        votes[labels[nearest]] += np.exp(cosines[nearest] / 0.07)
    return votes / votes.sum()


@pytest.mark.parametrize("count", [70, 12], ids=["many", "fewer than k"])
def test_each_query_is_voted_on_by_its_twenty_nearest(
    count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdcache.transferability.knn.QUERIES_AT_ONCE", 4)
    random = np.random.default_rng(0)
    features, queries = random.normal(1, 1, (count, 8)), random.normal(1, 1, (9, 8))
    labels = random.integers(0, 4, count)
    found = knn_scores(
        torch.from_numpy(features), torch.from_numpy(labels), torch.from_numpy(queries), 4
    )
    expected = [by_hand(features, labels, query) for query in queries]
    np.testing.assert_allclose(found, expected, atol=1e-5)
