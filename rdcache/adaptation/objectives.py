"""What an adaptation learns from: its batches, and the named terms of its loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from rdcache.adaptation.sampling import TrainingImages, joined
from rdcache.distillation.sampling import Picks
from rdcache.models.adapters import Classified

Terms = dict[str, torch.Tensor]


class Objective(ABC):
    """Base of objectives.

    Args:
        images: the training images.
        batch_size: of a step.
    """

    def __init__(self, images: TrainingImages, batch_size: int) -> None:
        images.require(batch_size)
        self.images, self.batch_size = images, batch_size

    def picks(self, stage: str, epoch: int) -> list[Picks]:
        """The batches of an epoch."""
        return self.images.shuffled(self.batch_size, epoch, stage)

    @abstractmethod
    def terms(self, output: Classified, target: torch.Tensor, stage: str, progress: float) -> Terms:
        """The terms of the loss; it is their sum.

        Args:
            target: int64 (B,).
            progress: share of the stage's epochs that are done.
        """


class Supervised(Objective):
    """The task's loss alone: `ce`."""

    def __init__(self, images: TrainingImages, batch_size: int, task_loss: nn.Module) -> None:
        super().__init__(images, batch_size)
        self.task_loss = task_loss

    def terms(self, output: Classified, target: torch.Tensor, stage: str, progress: float) -> Terms:
        """See `Objective.terms`."""
        return {"ce": self.task_loss(output.logits, target)}


class LongTailed(Objective):
    """LPT's: phase 1 by the asymmetric loss; phase 2 by two batches at once.

    One has all classes alike, the other images as they come, whose weight falls from 0.5 to 0.
    Keys are drawn towards the descriptions that chose them. Terms: `agcl`, or `balanced_agcl`,
    `agcl` and `similarity`.
    """

    decaying, similarity = 0.5, 0.5

    def __init__(self, images: TrainingImages, batch_size: int) -> None:
        super().__init__(images, batch_size)
        counts = images.counts.tolist()
        self.balanced_loss = AsymmetricLoss(counts, positive=0.0, negative=4.0)
        self.loss = AsymmetricLoss(counts, positive=0.5, negative=8.0)

    def picks(self, stage: str, epoch: int) -> list[Picks]:
        """Batches; of phase 2 twice as large, the balanced half first."""
        plain = super().picks(stage, epoch)
        if stage == "shared":
            return plain
        balanced = self.images.balanced(self.batch_size, epoch, stage)
        return [joined(*both) for both in zip(balanced, plain, strict=True)]

    def terms(self, output: Classified, target: torch.Tensor, stage: str, progress: float) -> Terms:
        """See `Objective.terms`."""
        if stage == "shared":
            return {"agcl": self.balanced_loss(output.logits, target)}
        assert output.similarity is not None
        balanced, plain = output.logits.split(self.batch_size)
        alike, as_they_come = target.split(self.batch_size)
        weight = self.decaying * (1 - progress)
        near_alike, near = (half.mean() for half in output.similarity.split(self.batch_size))
        return {
            "balanced_agcl": self.balanced_loss(balanced, alike),
            "agcl": weight * self.loss(plain, as_they_come),
            "similarity": -self.similarity * (near_alike + weight * near),
        }


class AsymmetricLoss(nn.Module):
    """The asymmetric Gaussian-clouded logit loss of LPT, for logits z = s·cos.

    Training blurs the logits of a class the more, the fewer images it has, and takes a margin m off
    the true one's:

        z'_j = z_j − s·ν·|ε_j|·(log n_max − log n_j) / (log n_max − log n_min) − s·m·[j = y]

    with ε_j from a normal distribution of deviation 1/3, cut at ±1. With p = softmax(z') and labels
    t smoothed by 0.1,

        L = −Σ_j t_j·w_j·log p_j,   w_y = (1 − p_y)^γ₊,  w_j = p_j^γ₋ for the others

    averaged over the batch. There is no blur where all classes are equally frequent.

    Args:
        counts: n_j, training images of each class.
        positive: γ₊.
        negative: γ₋.
    """

    scale, margin, noise, smoothing = 20.0, 0.1, 0.5, 0.1

    spread: torch.Tensor

    def __init__(self, counts: Sequence[int], positive: float, negative: float) -> None:
        super().__init__()
        self.positive, self.negative = positive, negative
        logs = torch.tensor(counts, dtype=torch.float32).clamp_min(1).log()
        rarity = logs.max() - logs
        self.spread = self.noise * rarity / rarity.max().clamp_min(1e-12)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Average the loss over the batch; the blur is drawn from PyTorch's generator."""
        draws = torch.randn(logits.shape, device=logits.device) / 3
        return self.of_draws(logits, target, draws.clamp(-1, 1))

    def of_draws(
        self, logits: torch.Tensor, target: torch.Tensor, draws: torch.Tensor
    ) -> torch.Tensor:
        """The loss for given ε (B, C)."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        true = F.one_hot(target, logits.shape[1]).to(logits.dtype)
        if self.spread.device != logits.device:  # sent once: the copy is waited for
            self.spread = self.spread.to(logits.device)
        blur = draws.abs().to(logits.dtype) * self.spread.to(logits.dtype)
        log_p = F.log_softmax(logits - self.scale * (blur + self.margin * true), dim=1)
        p = log_p.exp()
        # The slope of a root is infinite at 0, which float32 reaches.
        rest = (1 - p).clamp_min(1e-6)
        weight = true * rest**self.positive + (1 - true) * p**self.negative
        smooth = true * (1 - self.smoothing) + self.smoothing / logits.shape[1]
        return -(smooth * weight * log_p).sum(dim=1).mean()
