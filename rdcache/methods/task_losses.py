"""What the labels ask for: the supervised loss of a task, and how two predictions are compared in
it; shared by all branches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from rdcache import losses
from rdcache.errors import UsageError

ClassWeights = Literal["none", "balanced"]


class TaskLoss(nn.Module):
    """Base of supervised losses: logits and targets in, a scalar out."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Average the loss over the batch, in float32 at least."""
        raise NotImplementedError

    def kl(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """τ²·KL of the task's predictions, the teacher's for the target: a scalar.

        Gradients go to both arguments: detach the one that should not move.
        """
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
        balanced = balanced_weights(class_counts) if class_weights == "balanced" else None
        self.register_buffer("weight", balanced, persistent=False)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Average the loss over the batch, of logits (B, C) and int64 (B,)."""
        return cross_entropy(logits, target, self.weight, self.label_smoothing)

    def kl(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Average KL over the batch; see `losses.kl`."""
        return losses.kl(student_logits, teacher_logits, temperature)


class MultilabelLoss(TaskLoss):
    """Binary cross-entropy of each class, where any number of them may be present.

    Args:
        class_counts: training samples in which each class is present.
        label_smoothing: ε of y·(1 − ε) + ε/2.
        class_weights: `balanced` weighs the presence of class c by (N − n_c) / n_c.
        samples: N, training samples in all; for `balanced` alone.
    """

    pos_weight: torch.Tensor | None

    def __init__(
        self,
        class_counts: Sequence[int],
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = "none",
        samples: int | None = None,
    ) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing
        weight = None
        if class_weights == "balanced":
            if samples is None:
                raise UsageError("balanced weights of labels need the number of samples.")
            counts = torch.tensor(class_counts, dtype=torch.float32).clamp_min(1)
            weight = (samples - counts).clamp_min(1) / counts
        self.register_buffer("pos_weight", weight, persistent=False)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Average over samples and classes, of logits (B, L) and float (B, L) in [0, 1]."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        target = target.to(logits.dtype)
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, target, pos_weight=self.pos_weight)

    def kl(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Average the KL of each class over samples and classes; see `losses.binary_kl`."""
        return losses.binary_kl(student_logits, teacher_logits, temperature)


class SegmentationLoss(TaskLoss):
    """Cross-entropy of every position plus Dice of the classes that are not background.

    Args:
        class_counts: training positions of each class, background first; for `balanced` alone.
        label_smoothing: share of the cross-entropy's target spread evenly over all classes.
        class_weights: `balanced` weighs class c of the cross-entropy by N / (C·n_c).
        dice_over: see `losses.dice`.
    """

    weight: torch.Tensor | None

    def __init__(
        self,
        class_counts: Sequence[int],
        label_smoothing: float = 0.0,
        class_weights: ClassWeights = "none",
        dice_over: Literal["sample", "batch"] = "sample",
    ) -> None:
        super().__init__()
        self.label_smoothing, self.dice_over = label_smoothing, dice_over
        balanced = balanced_weights(class_counts) if class_weights == "balanced" else None
        self.register_buffer("weight", balanced, persistent=False)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Average over the batch, of logits (B, C, *positions) and int64 (B, *positions)."""
        loss = cross_entropy(logits, target, self.weight, self.label_smoothing)
        return loss + losses.dice(logits, target, over=self.dice_over)

    def kl(
        self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Average KL over positions; see `losses.position_kl`."""
        return losses.position_kl(student_logits, teacher_logits, temperature)


def balanced_weights(class_counts: Sequence[int]) -> torch.Tensor:
    """N / (C·n_c) of each class, n_c at least 1: float32 (C,)."""
    counts = torch.tensor(class_counts, dtype=torch.float32)
    return counts.sum() / (len(counts) * counts.clamp_min(1))


def cross_entropy(
    logits: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None, smoothing: float
) -> torch.Tensor:
    """Average the cross-entropy over the batch and its positions, in float32 at least."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, target, weight=weight, label_smoothing=smoothing)


def task_loss(
    task: str,
    class_counts: Sequence[int],
    label_smoothing: float = 0.0,
    class_weights: ClassWeights = "none",
    samples: int | None = None,
) -> TaskLoss:
    """Build the supervised loss of a task.

    Args:
        class_counts: what there is of each class for training: samples of it (`multiclass`),
            samples that have it (`multilabel`), or positions (`segmentation`, background first).
        samples: training samples in all; read for balanced weights of labels alone.

    Raises:
        UsageError: students cannot be trained for this task.
    """
    if task == "multiclass":
        return MulticlassLoss(class_counts, label_smoothing, class_weights)
    if task == "multilabel":
        return MultilabelLoss(class_counts, label_smoothing, class_weights, samples)
    if task == "segmentation":
        return SegmentationLoss(class_counts, label_smoothing, class_weights)
    raise UsageError(
        f"the task {task!r} has no loss.", known="multiclass, multilabel, segmentation"
    )
