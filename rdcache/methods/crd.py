"""Contrastive representation distillation: the student's features of a sample are nearer to the
teacher's of the same sample than to those of samples of other classes.

    L = CE(z_s, y) + w·[NCE(v_s; bank of teachers) + NCE(v_t; bank of students)]
    NCE = −log P⁺/(P⁺ + K/n) − Σ_K log (K/n)/(P⁻ + K/n),    P = exp(v·b/τ)/Z

Tian et al., "Contrastive Representation Distillation", ICLR 2020; w = 0.8, τ = 0.07, K = 16384,
d = 128 and a momentum of 0.5 as in the authors' code. v is a linear embedding of length 1 of the
student's features and of the teacher's, averaged over positions; b is one of two banks that hold
an average embedding of each of the n training samples, and are moved after every step. Z is n times
the mean of exp(v·b/τ) over the first batch, one for each direction. "Exact" negatives: only samples
of other classes, so data of a single class are refused.

K is made for data sets of more samples than it. With n ≤ K samples, drawing K negatives with
replacement repeats each of them many times; instead all of them are taken, each counted K/(their
number) times, which is what drawing gives on average, without its noise and at a fraction of its
cost. With more samples K are drawn with replacement (the authors draw without, which differs little
at such numbers). Memory: two banks of (n, d), and scores (B, n) a direction.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional as F

from rdcache import losses
from rdcache.errors import UsageError
from rdcache.methods.base import (
    IMAGES_AND_VOLUMES,
    CachedBatch,
    MethodConfig,
    MethodContext,
    Terms,
    TrainingProgress,
)
from rdcache.methods.pooled import PooledBaseline, PooledConfig
from rdcache.methods.registry import register
from rdcache.models import StudentOutput


class ContrastiveConfig(PooledConfig):
    """Options of contrastive representation distillation."""

    weight: float = Field(default=0.8, ge=0, description="Weight of both directions' sum.")
    negatives: int = Field(
        default=16384, ge=1, description="K: negatives that each positive is contrasted with."
    )
    contrast_temperature: float = Field(default=0.07, gt=0, description="τ of the embeddings.")
    momentum: float = Field(
        default=0.5, ge=0, lt=1, description="Share of a bank's entry that a step leaves as it was."
    )
    embedding: int = Field(default=128, ge=1, description="Width d of the embeddings.")


class MemoryBanks(nn.Module):
    """Embeddings of every training sample by student and teacher, in rows sorted by class.

    Args:
        labels: int64 (N,), the class of each sample of the store, -1 where it does not train.
        classes: their number.

    Raises:
        UsageError: all training samples are of one class.
    """

    row_of: torch.Tensor
    class_of: torch.Tensor
    first: torch.Tensor
    sizes: torch.Tensor
    students: torch.Tensor
    teachers: torch.Tensor
    log_partitions: torch.Tensor

    def __init__(self, config: ContrastiveConfig, labels: torch.Tensor, classes: int) -> None:
        super().__init__()
        self.config = config
        training = labels.ge(0).nonzero()[:, 0]
        order = training[labels[training].argsort(stable=True)]
        sizes = torch.bincount(labels[training], minlength=classes)
        if (sizes > 0).sum() < 2:
            raise UsageError(
                "crd contrasts samples of different classes, and all that train are of one.",
                samples=len(training),
            )
        row_of = torch.full_like(labels, -1)
        row_of[order] = torch.arange(len(order))
        # What follows from the labels is built anew and not saved.
        for name, value in (
            ("row_of", row_of),
            ("class_of", labels[order]),
            ("first", sizes.cumsum(0) - sizes),
            ("sizes", sizes),
        ):
            self.register_buffer(name, value, persistent=False)
        bound = (3 / config.embedding) ** 0.5  # entries of this uniform spread have a length near 1
        shape = (len(order), config.embedding)
        self.register_buffer("students", torch.empty(shape).uniform_(-bound, bound))
        self.register_buffer("teachers", torch.empty(shape).uniform_(-bound, bound))
        self.register_buffer("log_partitions", torch.full((2,), -torch.inf))
        self.seen: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None = None

    def forward(
        self,
        student: torch.Tensor,
        teacher: torch.Tensor,
        samples: torch.Tensor,
        target: torch.Tensor,
    ) -> torch.Tensor:
        """Contrast embeddings (B, d) with both banks, and keep them for `update`.

        Args:
            samples: int64 (B,), sample numbers in the store.
            target: int64 (B,), their classes.

        Returns:
            Scalar, the sum of both directions.
        """
        rows, drawn = self.row_of[samples], self._draw(target)
        self.seen = (rows, student.detach(), teacher.detach())
        forth = self._direction(0, student, self.teachers, rows, target, drawn)
        return forth + self._direction(1, teacher, self.students, rows, target, drawn)

    @torch.no_grad()
    def update(self) -> None:
        """Move the entries of the batch that was seen; after its step, as gradients need them."""
        if self.seen is None:
            return
        rows, *embeddings = self.seen
        kept = self.config.momentum
        for bank, embedding in zip((self.students, self.teachers), embeddings, strict=True):
            moved = kept * bank[rows] + (1 - kept) * embedding
            bank.index_copy_(0, rows, F.normalize(moved, dim=1))
        self.seen = None

    def _draw(self, target: torch.Tensor) -> torch.Tensor | None:
        """Rows (B, K) of other classes than the target; None for all of them."""
        if len(self.class_of) <= self.config.negatives:
            return None
        own, first = self.sizes[target][:, None], self.first[target][:, None]
        others = len(self.class_of) - own
        draws = torch.rand((len(target), self.config.negatives), device=target.device)
        # Rows are sorted by class: those of other classes are the ones before and after its own.
        drawn = (draws * others).long().minimum(others - 1)
        return drawn + own * (drawn >= first)

    def _direction(
        self,
        number: int,
        anchors: torch.Tensor,
        bank: torch.Tensor,
        rows: torch.Tensor,
        target: torch.Tensor,
        drawn: torch.Tensor | None,
    ) -> torch.Tensor:
        total, negatives = len(bank), self.config.negatives
        scores = anchors @ bank.T / self.config.contrast_temperature
        positive, counts = scores.gather(1, rows[:, None])[:, 0], None
        if drawn is None:
            others = self.class_of != target[:, None]
            counts = others * (negatives / others.sum(1, keepdim=True))
        else:
            scores = scores.gather(1, drawn)
        log_partition = self._log_partition(number, positive, scores, counts)
        return losses.noise_contrast(
            positive - log_partition, scores - log_partition, negatives / total, counts
        )

    @torch.no_grad()
    def _log_partition(
        self,
        number: int,
        positive: torch.Tensor,
        scores: torch.Tensor,
        counts: torch.Tensor | None,
    ) -> torch.Tensor:
        """log Z of a direction, which the first batch decides. Z itself overflows for a small τ."""
        counted = scores if counts is None else scores + counts.log()
        total = torch.cat([positive[:, None], counted], dim=1).logsumexp(dim=(0, 1))
        pairs = len(positive) * (1 + self.config.negatives)
        known = self.log_partitions[number]
        now = total + math.log(len(self.class_of) / pairs)
        self.log_partitions[number] = torch.where(known.isfinite(), known, now)
        return self.log_partitions[number].clone()


@register(
    "crd",
    title="Contrastive representation distillation against a bank of all training samples",
    needs="one tap: a map, tokens or a vector; at least 2 classes",
    paper="Tian et al., ICLR",
    year=2020,
)
class ContrastiveRepresentationDistillation(PooledBaseline):
    """Terms: `ce` and `crd`."""

    Config: ClassVar[type[MethodConfig]] = ContrastiveConfig
    dimensions = IMAGES_AND_VOLUMES
    config: ContrastiveConfig

    def __init__(self, config: ContrastiveConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.student_embedding = nn.Linear(self.student_dim, config.embedding)
        self.teacher_embedding = nn.Linear(self.teacher_dim, config.embedding)
        self.banks = MemoryBanks(config, context.labels, context.num_classes)

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the contrast of the two embeddings with the banks."""
        mine = self.student_embedding(student.features).float()
        theirs = self.teacher_embedding(self.teacher_features(batch)).float()
        with torch.autocast(mine.device.type, enabled=False):
            mine, theirs = F.normalize(mine, dim=1), F.normalize(theirs, dim=1)
            contrast = self.banks(mine, theirs, batch.samples, batch.target)
        return {"crd": self.config.weight * contrast}

    def after_step(self) -> None:
        """Move the banks towards what was seen."""
        self.banks.update()
