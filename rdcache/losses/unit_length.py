"""Directions: vectors scaled to length 1."""

from __future__ import annotations

import torch


def unit_length(vectors: torch.Tensor) -> torch.Tensor:
    """Scale to length 1 over dimension 1; what is 0 there stays 0, and has no gradient."""
    norms = vectors.norm(dim=1, keepdim=True)
    known = norms > 0
    # Replaced before the division, not after it: the gradient of 0/0 would not be a number.
    return torch.where(known, vectors / torch.where(known, norms, 1.0), 0.0)
