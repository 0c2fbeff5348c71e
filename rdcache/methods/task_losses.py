"""What the labels ask for: the supervised loss of a task, shared by both branches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from rdcache.errors import UsageError

ClassWeights = Literal["none", "balanced"]


class TaskLoss(nn.Module):
    """Base of supervised losses: logits (B, C) and targets in, a scalar out."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Average the loss over the batch."""
        raise NotImplementedError


class MulticlassLoss(TaskLoss):
    """Cross-entropy with one class per sample.

    Args:
        class_counts: training samples of each class.
        label_smoothing: share of the target spread evenly over all classes.
        class_weights: `balanced` weighs class c by N / (C·n_c).
    """

    weight: torch.Tensor | None

    def __init__(
        self,
        class_counts: Sequence[int],
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = "none",
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        weight = None
        if class_weights == "balanced":
            counts = torch.tensor(class_counts, dtype=torch.float32)
            weight = counts.sum() / (len(counts) * counts.clamp_min(1))
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Average the loss over the batch, in float32 at least."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(
            logits, target, weight=self.weight, label_smoothing=self.label_smoothing
        )


_LOSSES = {"multiclass": MulticlassLoss}


def task_loss(
    task: str,
    class_counts: Sequence[int],
    label_smoothing: float = 0.0,
    class_weights: ClassWeights = "none",
) -> TaskLoss:
    """Build the supervised loss of a task.

    Raises:
        UsageError: students cannot be trained for this task.
    """
    if task not in _LOSSES:
        raise UsageError(f"the task {task!r} has no loss.", known=", ".join(_LOSSES))
    return _LOSSES[task](class_counts, label_smoothing, class_weights)
