"""The basis of a projection: principal directions of a tap's channel vectors on a fixed probe."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rdcache.data import CLEAN_VIEW
from rdcache.errors import UsageError
from rdcache.extraction.forward import TeacherForward
from rdcache.extraction.reduction import KeptTap
from rdcache.store import TapSpec
from rdcache.store.projection import Projection

PROBE = 256  # training samples whose clean views a basis is found from


def probe(training: np.ndarray, most: int) -> np.ndarray:
    """At most so many of the training samples' numbers, evenly spaced."""
    count = min(most, len(training))
    return np.asarray(training[np.arange(count) * len(training) // max(count, 1)])


def require_vectors(kept: Sequence[KeptTap], training: int) -> None:
    """Refuse a basis that a probe of this many training samples cannot give.

    Raises:
        UsageError: it would need more channel vectors.
    """
    for tap in (it.kept for it in kept if it.kept.projected_from is not None):
        channels = tap.shape[tap.channel_axis]
        positions = int(np.prod(tap.shape)) // channels
        vectors = min(PROBE, training) * positions
        if channels >= vectors:
            raise UsageError(
                f"a basis of {channels} directions needs more training images.",
                tap=tap.name,
                images=training,
                next=f"--project {tap.name}={max(1, vectors // 2)} or fewer",
            )


def fit_projections(
    forward: TeacherForward, taps: Sequence[TapSpec], training: np.ndarray
) -> dict[str, Projection]:
    """Find the bases of the taps that are to be projected.

    Args:
        training: numbers of the training samples.
    """
    wanted = [tap for tap in taps if tap.projected_from is not None]
    if not wanted:
        return {}
    moments = {tap.name: Moments(tap) for tap in wanted}
    for outputs in forward.batches(CLEAN_VIEW, probe(training, PROBE).tolist()):
        for tap in wanted:
            moments[tap.name].add(outputs[tap.name])
    return {tap.name: moments[tap.name].projection() for tap in wanted}


class Moments:
    """Mean and covariance of a tap's channel vectors, summed in float64."""

    def __init__(self, tap: TapSpec) -> None:
        size = tap.projected_from or 0
        self.tap = tap
        self.count = 0
        self.total = torch.zeros(size, dtype=torch.float64)
        self.squares = torch.zeros(size, size, dtype=torch.float64)

    def add(self, values: torch.Tensor) -> None:
        """Add a batch (B, *tap of the teacher); samples with NaN or Inf do not count."""
        values = values[values.isfinite().flatten(1).all(1)].double()
        axis = -1 if self.tap.channel_axis == -1 else 1
        vectors = values.movedim(axis, -1).reshape(-1, len(self.total))
        self.count += len(vectors)
        self.total += vectors.sum(0)
        self.squares += vectors.T @ vectors

    def projection(self) -> Projection:
        """The directions of largest variance first, each with its largest entry positive."""
        mean = self.total / max(self.count, 1)
        covariance = self.squares / max(self.count, 1) - torch.outer(mean, mean)
        _, directions = torch.linalg.eigh(covariance)
        basis = directions.T.flip(0)[: self.tap.shape[self.tap.channel_axis]]
        largest = basis.gather(1, basis.abs().argmax(1, keepdim=True))
        return Projection(mean.float(), (basis * largest.sign()).float().contiguous())
