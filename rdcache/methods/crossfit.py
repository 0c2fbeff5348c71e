"""Cross-fitted targets: what teacher branches that have never seen an image say about it.

A reprogrammer has enough freedom to learn a small training set by heart. From then on its targets
for the training images repeat the labels, and what it knows beyond them is lost on the student.
Here each training image is judged by a branch that was trained on the other folds alone. That
costs a few passes over the cached taps, and no teacher and no student runs in them.

These branches, too, are surer than they should be, and a student that imitates them learns that as
well. One number mends it: a temperature that their logits are divided by, chosen so that they fit
the labels of the images that they have not seen (Guo et al., "On Calibration of Modern Neural
Networks", ICML 2017).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import nn

from rdcache.methods.task_losses import TaskLoss

TEMPERATURES = torch.logspace(-1, 1.5, 101)  # 6 % apart


class CrossFittedBranches(nn.Module):
    """One teacher branch for each fold, trained on all the other folds.

    Args:
        build: makes an untrained branch: tap (B, *tap) → features (B, D) and logits (B, C).
        fold_of: int64 (N,), the fold of each sample of the store; -1 where it does not train.

    Attributes:
        temperature: scalar that logits are divided by; 1 until `calibrate`.
    """

    fold_of: torch.Tensor
    temperature: torch.Tensor

    def __init__(self, build: Callable[[], nn.Module], fold_of: torch.Tensor) -> None:
        super().__init__()
        self.branches = nn.ModuleList(build() for _ in range(int(fold_of.max()) + 1))
        self.register_buffer("fold_of", fold_of)
        self.register_buffer("temperature", torch.ones(()))
        self._noted: list[tuple[torch.Tensor, torch.Tensor]] = []

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
    def note_unseen(self, tap: torch.Tensor, samples: torch.Tensor, target: torch.Tensor) -> None:
        """Keep for `calibrate` what the branches say of samples that they have not seen, while they
        are still being trained.
        """
        training = self.training
        self._noted.append((self.logits(tap, samples).float(), target))
        self.train(training)

    @torch.no_grad()
    def calibrate(self, task_loss: TaskLoss) -> None:
        """Choose the temperature under which what was noted has the smallest loss."""
        logits, target = (torch.cat(parts) for parts in zip(*self._noted, strict=True))
        losses = torch.stack([task_loss(logits / it, target) for it in TEMPERATURES.tolist()])
        self.temperature.copy_(TEMPERATURES[losses.argmin().cpu()])
        self._noted.clear()

    @torch.no_grad()
    def logits(self, tap: torch.Tensor, samples: torch.Tensor) -> torch.Tensor:
        """Judge each sample by the branch that has not seen it, in evaluation mode: (B, C)."""
        self.eval()
        parts, places = [], []
        for branch, unseen in self._selections(samples, inside=True):
            parts.append(branch(tap[unseen])[1])
            places.append(unseen)
        return torch.cat(parts)[torch.cat(places).argsort()] / self.temperature

    @torch.no_grad()
    def mean_logits(self, tap: torch.Tensor) -> torch.Tensor:
        """Judge samples of other splits, which no branch has seen, by all of them: (B, C).

        The temperature is that of single branches: their mean may be less sure than it should be.
        """
        self.eval()
        mean = torch.stack([branch(tap)[1] for branch in self.branches]).mean(dim=0)
        return mean / self.temperature

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
