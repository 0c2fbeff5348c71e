"""A linear probe: what the features of a frozen teacher say about the labels, linearly.

Multinomial logistic regression on standardised features. The strength of its L2 penalty is the one
with the smallest negative log-likelihood on the validation samples or, where there are none, over
five folds of the training samples, which part no group. Nothing is drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from rdcache.data.groups import dealt_out, members_of
from rdcache.errors import UsageError
from rdcache.transferability.logistic_regression import COMPARABLE, Solution, minimise
from rdcache.transferability.principal_axes import PrincipalAxes
from rdcache.transferability.standardising import divisors

# From strong to weak, each fit starting from the last; l2 = 1 / (n · C) in scikit-learn's terms.
STRENGTHS = (10.0, 1.0, 0.1, 1e-2, 1e-3, 1e-4)
PATIENCE = 2  # so many strengths worse than the best one end the search
FOLDS = 5


@dataclass(frozen=True)
class LinearProbe:
    """A linear classifier of raw features: logits = features · weightᵀ + bias.

    Attributes:
        weight: float64 (C, D), the standardisation folded in.
        bias: float64 (C,).
        l2: the strength of the penalty that was chosen, on standardised features.
        validation_accuracy: at that strength; of the folds left out where there is no validation
            set.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    l2: float
    validation_accuracy: float

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Judge raw features (n, D): float32 (n, C), computed in float64."""
        device = features.device
        return (features.double() @ self.weight.to(device).T + self.bias.to(device)).float()


def fit_linear_probe(
    features: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    *,
    validation: tuple[torch.Tensor, torch.Tensor] | None = None,
    groups: np.ndarray | None = None,
) -> LinearProbe:
    """Fit a linear classifier of frozen features.

    Args:
        features: (n, D) in any floating dtype.
        labels: int64 (n,), 0 to `num_classes` − 1; classes may be missing.
        validation: features and labels that the strength of the penalty is chosen on. Where there
            are none, or not one sample, it is chosen by folds.
        groups: int64 (n,), equal numbers for samples that are much alike, as those of one patient:
            no fold parts them, unless all are of one group. -1 for a sample that stands alone
            (default: all do).

    Raises:
        UsageError: other shapes, NaN or Inf, labels out of range, fewer than two samples, or not a
            group for each.
    """
    _require_fitting(features, labels, num_classes)
    if len(features) < 2:
        raise UsageError("a linear probe needs at least two samples.", samples=len(features))
    members = _members(len(labels), groups)
    samples = features.detach().cpu().to(torch.float64, copy=True)
    labels = labels.cpu()
    mean = samples.mean(dim=0)
    divisor = divisors(samples.std(dim=0, correction=0))
    axes = PrincipalAxes.of(samples.sub_(mean).div_(divisor))
    del samples  # as large as all that follows
    if validation is None or not len(validation[0]):
        l2, solution, accuracy = _chosen_by_folds(axes, labels, members, num_classes)
    else:
        _require_fitting(*validation, num_classes, dimension=features.shape[1])
        held_out = ((validation[0].detach().cpu().double() - mean) / divisor) @ axes.axes
        truth = validation[1].cpu()
        l2, solution, accuracy = _chosen_on(held_out, truth, axes, labels, num_classes)
    weight = solution.weight @ axes.axes.T / divisor
    return LinearProbe(weight, solution.bias - weight @ mean, l2, accuracy)


def _chosen_on(
    held_out: torch.Tensor,
    truth: torch.Tensor,
    axes: PrincipalAxes,
    labels: torch.Tensor,
    classes: int,
) -> tuple[float, Solution, float]:
    """The best strength on held-out samples, its solution and its accuracy on them."""
    solution = _untrained(axes, classes)
    tried: list[tuple[float, float, Solution]] = []
    for l2 in STRENGTHS:
        solution = minimise(axes.coordinates, labels, axes.variances, l2, solution, COMPARABLE)
        tried.append((float(cross_entropy(solution.logits(held_out), truth)), l2, solution))
        if _settled([loss for loss, *_ in tried]):
            break
    _, l2, near = min(tried, key=lambda trial: trial[0])  # the stronger of equals
    solution = minimise(axes.coordinates, labels, axes.variances, l2, near)
    return l2, solution, _accuracy(solution.logits(held_out), truth)


def _chosen_by_folds(
    axes: PrincipalAxes, labels: torch.Tensor, members: np.ndarray, classes: int
) -> tuple[float, Solution, float]:
    """The best strength over folds, the solution on all samples, and the folds' accuracy.

    Mean, spread and axes are those of all training samples: they know no labels.
    """
    folds = list(_folds(labels, members))
    solutions = [_untrained(axes, classes) for _ in folds]
    tried: list[tuple[float, float, Solution, float]] = []
    for l2 in STRENGTHS:
        logits = torch.empty(len(labels), classes, dtype=torch.float64)
        for number, held_out in enumerate(folds):
            seen, unseen = axes.coordinates[~held_out], axes.coordinates[held_out]
            solutions[number] = minimise(
                seen, labels[~held_out], axes.variances, l2, solutions[number], COMPARABLE
            )
            logits[held_out] = solutions[number].logits(unseen)
        middle = Solution(
            torch.stack([each.weight for each in solutions]).mean(dim=0),
            torch.stack([each.bias for each in solutions]).mean(dim=0),
        )
        tried.append((float(cross_entropy(logits, labels)), l2, middle, _accuracy(logits, labels)))
        if _settled([loss for loss, *_ in tried]):
            break
    _, l2, middle, accuracy = min(tried, key=lambda trial: trial[0])
    return l2, minimise(axes.coordinates, labels, axes.variances, l2, middle), accuracy


def _members(samples: int, groups: np.ndarray | None) -> np.ndarray:
    """The group of each sample, of which there are two at least."""
    alone = np.full(samples, -1)
    members = members_of(alone if groups is None else groups)
    if len(members) != samples:
        raise UsageError(
            "a linear probe takes a group for each sample.", samples=samples, groups=len(members)
        )
    return members if members.any() else members_of(alone)


def _folds(labels: torch.Tensor, members: np.ndarray) -> Iterator[torch.Tensor]:
    """Masks of the held-out samples: the groups of every class are dealt out evenly, in the order
    that they come in.
    """
    order = np.argsort(np.unique(members, return_index=True)[1])
    count = min(FOLDS, len(order))
    fold_of = torch.from_numpy(dealt_out(labels.numpy(), members, count, order))
    for fold in range(count):
        yield fold_of == fold


def _untrained(axes: PrincipalAxes, classes: int) -> Solution:
    weight = torch.zeros(classes, axes.axes.shape[1], dtype=torch.float64)
    return Solution(weight, torch.zeros(classes, dtype=torch.float64))


def _settled(losses: list[float]) -> bool:
    """Whether weaker penalties have only made it worse for a while."""
    return len(losses) - 1 - losses.index(min(losses)) >= PATIENCE


def _accuracy(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).double().mean())


def _require_fitting(
    features: torch.Tensor, labels: torch.Tensor, classes: int, dimension: int | None = None
) -> None:
    """Refuse what no probe can be fitted to."""
    if features.ndim != 2 or labels.shape != features.shape[:1] or 0 in features.shape[1:]:
        raise UsageError(
            "a linear probe takes features (samples, channels) and a label for each sample.",
            features=tuple(features.shape),
            labels=tuple(labels.shape),
        )
    if dimension is not None and features.shape[1] != dimension:
        raise UsageError(
            "the validation features are not as wide as the training features.",
            training=dimension,
            validation=features.shape[1],
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise UsageError(
            "a label is none of the classes.",
            labels=f"{int(labels.min())} to {int(labels.max())}",
            classes=classes,
        )
    if not bool(torch.isfinite(features).all()):
        raise UsageError("features with NaN or Inf cannot be probed.")
