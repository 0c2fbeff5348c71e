"""Cross-fitted targets: what teacher branches that have never seen an image say about it.

A reprogrammer has enough freedom to learn a small training set by heart. From then on its targets
for the training images repeat the labels, and what it knows beyond them is lost on the student.
Here each training image is judged by a branch that was trained on the other folds alone. That
costs a few passes over the cached taps, and no teacher and no student runs in them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from rdcache.methods.task_losses import TaskLoss


class CrossFittedBranches(nn.Module):
    """One teacher branch for each fold, trained on all the other folds.

    Args:
        build: makes an untrained branch: tap (B, *tap) → features (B, D) and logits (B, C).
        fold_of: int64 (N,), the fold of each sample of the store; -1 where it does not train.
    """

    fold_of: torch.Tensor

    def __init__(self, build: Callable[[], nn.Module], fold_of: torch.Tensor) -> None:
        super().__init__()
        self.branches = nn.ModuleList(build() for _ in range(int(fold_of.max()) + 1))
        self.register_buffer("fold_of", fold_of)

    def loss(
        self, tap: torch.Tensor, samples: torch.Tensor, target: torch.Tensor, task_loss: TaskLoss
    ) -> torch.Tensor:
        """Sum the branches' losses, each over the samples of the batch outside its own fold."""
        losses = [
            task_loss(branch(tap[seen])[1], target[seen])
            for branch, seen in self._selections(samples, inside=False)
        ]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def logits(self, tap: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """Judge each sample by the branch that has not seen it, in evaluation mode: (B, C)."""
        self.eval()
        parts, places = [], []
        for branch, unseen in self._selections(samples, inside=True):
            parts.append(branch(tap[unseen])[1])
            places.append(unseen)
        return torch.cat(parts)[torch.cat(places).argsort()]

    @torch.no_grad()
    def mean_logits(self, tap: torch.Tensor) -> torch.Tensor:
        """Judge samples of other splits, which no branch has seen, by all of them: (B, C)."""
        self.eval()
        return torch.stack([branch(tap)[1] for branch in self.branches]).mean(dim=0)

    def _selections(
        self, samples: torch.Tensor, inside: bool
    ) -> Iterator[tuple[nn.Module, torch.Tensor]]:
        """Each branch with the positions of the samples in its fold, or outside it."""
        folds = self.fold_of[samples]
        for fold, branch in enumerate(self.branches):
            positions = torch.nonzero((folds == fold) == inside).squeeze(1)
            # Batch norm cannot train on a single sample.
            if len(positions) > (0 if inside else 1):
                yield branch, positions
