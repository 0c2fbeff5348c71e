"""The weighted nearest-neighbour classifier by which frozen features are commonly judged.

A sample is given the labels of the k training samples of largest cosine similarity s, each weighted
with exp(s/0.07) (Wu et al., CVPR 2018; Caron et al., ICCV 2021). Nothing is trained and nothing is
chosen: k is 20, and features are taken as the teacher gave them.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize, one_hot

NEIGHBOURS = 20
TEMPERATURE = 0.07
QUERIES_AT_ONCE = 1024


def knn_scores(
    features: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Let each query's nearest samples vote, all of them where there are fewer than 20.

    Args:
        features: (n, D), of the training samples.
        labels: int64 (n,), 0 to `num_classes` − 1.
        queries: (m, D).

    Returns:
        float32 (m, C), each row summing to 1; a query of length zero is equally near to all.
    """
    directions = normalize(features.float(), dim=1)
    votes = one_hot(labels, num_classes).float()  # (n, C)
    scores = torch.empty(len(queries), num_classes)
    for start in range(0, len(queries), QUERIES_AT_ONCE):
        part = slice(start, start + QUERIES_AT_ONCE)
        similarity = normalize(queries[part].float(), dim=1) @ directions.T  # (m, n)
        nearest = similarity.topk(min(NEIGHBOURS, len(features)), dim=1)
        weights = (nearest.values / TEMPERATURE).softmax(dim=1)  # (m, k)
        scores[part] = (votes[nearest.indices] * weights[:, :, None]).sum(dim=1)
    return scores
