"""Classifiers on a teacher's features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class CosineHead(nn.Module):
    """Logits s·cos(w_c, f), as LPT has them.

    Args:
        scale: s.
    """

    def __init__(self, features: int, classes: int, scale: float = 20.0) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(F.normalize(torch.empty(classes, features).uniform_(-1, 1)))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (B, C) of features (B, F)."""
        return self.scale * F.normalize(features, dim=1) @ F.normalize(self.weight, dim=1).T


def linear_head(features: int, classes: int) -> nn.Module:
    """A linear classifier that is zero at the start: all classes are equally likely."""
    head = nn.Linear(features, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def standardising_head(features: int, classes: int) -> nn.Module:
    """A linear classifier of features that are standardised by their statistics in training, as
    linear probes of MAE and AdaptFormer have it: teachers differ in the scale of their features.
    """
    return nn.Sequential(
        nn.BatchNorm1d(features, affine=False, eps=1e-6), linear_head(features, classes)
    )


def cosine_head(features: int, classes: int) -> nn.Module:
    """A cosine classifier behind a little dropout."""
    return nn.Sequential(nn.Dropout(0.1), CosineHead(features, classes))
