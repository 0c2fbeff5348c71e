"""RD from several teachers: one reprogrammer each, one classifier that all share with the student.

    L = CE(z_s, y) + Σ_t w_t·[α·CE(z_t, y) + β·τ²·KL(p_t ‖ p_s) + w·(1 − CKA(f_t, f_s))]

with Σ_t w_t = 1. The weights are fixed, or learned. With one teacher this is `rd.py` itself.

Learned weights are w = softmax(a), and `a` moves by one term alone, the mixture's cross-entropy

    CE(Σ_t w_t·z_t, y),    z_t detached,

which is convex in w and large where a teacher is trusted that errs while another does not. Were w
moved by the sum above, it would run to the teacher that is imitated most easily, such as one that
says nothing; and were a branch to train with its weight, one that starts badly would never learn.
So w is detached in all other terms, and each branch's own cross-entropy weighs 1/N. The mixture is
then the one target of KL, and CKA is weighed by w. The weights begin at 1/N, move at the learning
rate of everything else, and may well end at one teacher, if no other adds to what it knows. On
images that the branches have learnt by heart they say little; with `folds` the mixture is of
branches that have not seen the image (stacked generalisation, Wolpert 1992).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import nn

from rdcache.errors import UsageError
from rdcache.methods.base import (
    CLASSIFICATION,
    IMAGES_AND_VOLUMES,
    CachedBatch,
    Method,
    MethodConfig,
    MethodContext,
    StageName,
    Terms,
    TrainingProgress,
)
from rdcache.methods.rd import ReprogrammingDistillation
from rdcache.methods.rd_options import RDConfig
from rdcache.methods.registry import for_several_taps
from rdcache.models import StudentOutput


@for_several_taps(of=ReprogrammingDistillation)
class RDOfSeveralTeachers(Method):
    """Terms: `ce`; `teacher_ce` (α), `kl` (β) and `cka`, each a weighted sum over teachers; and
    `mixture_ce`, where the weights are learned.

    Attributes:
        each: RD with one teacher, for each of them.
        scores: float32 (N,), logarithms of learned weights but for a constant; else None.
    """

    Config: ClassVar[type[MethodConfig]] = RDConfig
    tasks = CLASSIFICATION
    dimensions = IMAGES_AND_VOLUMES
    config: RDConfig

    def __init__(self, config: RDConfig, context: MethodContext) -> None:
        super().__init__(config, context)
        self.taps = context.taps_asked_for(config.tap)
        self._given = _given_weights(config, self.taps)
        self.each = nn.ModuleList(
            ReprogrammingDistillation(
                config.model_copy(update={"tap": tap, "teacher_weights": None}), context
            )
            for tap in self.taps
        )
        self.scores: nn.Parameter | None = None
        if config.teacher_weights == "learned":
            self.scores = nn.Parameter(torch.zeros(len(self.taps)))

    @property
    def teacher_epochs(self) -> int:
        """Epochs of a first stage in which only the teacher branches train."""
        return self.config.teacher_epochs

    @property
    def has_teacher_branch(self) -> bool:
        """The mixture of the reprogrammed teachers classifies."""
        return True

    def forward(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the weighted terms."""
        outputs = [rd.branch(batch.taps[rd.tap]) for rd in self._rds()]
        targets = [rd.targets(batch, *it) for rd, it in zip(self._rds(), outputs, strict=True)]
        mixture_terms: Terms = {}
        if self.scores is not None:
            mixture_terms["mixture_ce"] = self._mixture_loss(targets, batch.target)
            mixture = _weighted(self._weights(), [logits for _, logits in targets])
            targets = [(features, mixture) for features, _ in targets]
        by_teacher = [
            rd.terms(batch, student, progress, logits, target)
            for rd, (_, logits), target in zip(self._rds(), outputs, targets, strict=True)
        ]
        terms = {"ce": by_teacher[0]["ce"]}
        for name in list(by_teacher[0])[1:]:
            weights = self._given if name == "teacher_ce" else self._weights()
            terms[name] = _weighted(weights, [own[name] for own in by_teacher])
        return terms | mixture_terms

    def teacher_terms(self, batch: CachedBatch, progress: TrainingProgress) -> Terms:
        """Compute the cross-entropy of what the first stage trains."""
        by_teacher = [rd.teacher_terms(batch, progress) for rd in self._rds()]
        return {
            name: _weighted(self._given, [own[name] for own in by_teacher])
            for name in by_teacher[0]
        }

    def teacher_branch(self, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the teachers' features side by side, (B, ·), each with its weight's share in a
        linear kernel, and the logits of the mixture.
        """
        outputs = [rd.teacher_branch(taps) for rd in self._rds()]
        weights = self._weights()
        features = [
            (weight / features.shape[1]) ** 0.5 * features
            for weight, (features, _) in zip(weights, outputs, strict=True)
        ]
        return torch.cat(features, dim=1), _weighted(weights, [logits for _, logits in outputs])

    def trainable_parameters(self, stage: StageName) -> Iterator[nn.Parameter]:
        """List those of every teacher's branch, and the weights beside the student."""
        for rd in self._rds():
            yield from rd.trainable_parameters(stage)
        if self.scores is not None and stage == "student":
            yield self.scores

    def begin_stage(self, stage: StageName) -> None:
        """Tell every teacher's branch."""
        for rd in self._rds():
            rd.begin_stage(stage)

    def after_step(self) -> None:
        """Move the averaged branches."""
        for rd in self._rds():
            rd.after_step()

    def numbers(self) -> dict[str, float]:
        """The learned weights, by tap."""
        if self.scores is None:
            return {}
        learned = self.scores.detach().softmax(dim=0).tolist()
        return {f"weight {tap}": weight for tap, weight in zip(self.taps, learned, strict=True)}

    def _rds(self) -> list[ReprogrammingDistillation]:
        return [rd for rd in self.each if isinstance(rd, ReprogrammingDistillation)]

    def _weights(self) -> Sequence[float | torch.Tensor]:
        """What the teachers weigh at the moment; no term moves it."""
        if self.scores is None:
            return self._given
        return list(self.scores.detach().softmax(dim=0))

    def _mixture_loss(
        self, targets: Sequence[tuple[torch.Tensor, torch.Tensor]], target: torch.Tensor
    ) -> torch.Tensor:
        """The cross-entropy that the weights are learned by."""
        assert self.scores is not None
        weights = list(self.scores.softmax(dim=0))
        return self.task_loss(_weighted(weights, [it.detach() for _, it in targets]), target)


def _given_weights(config: RDConfig, taps: Sequence[str]) -> tuple[float, ...]:
    """The weights of the branches' own losses: as given, else equal.

    Raises:
        UsageError: their number is not that of the taps.
    """
    if not isinstance(config.teacher_weights, tuple):
        return (1 / len(taps),) * len(taps)
    if len(config.teacher_weights) != len(taps):
        raise UsageError(
            f"{len(config.teacher_weights)} teacher_weights are given for {len(taps)} taps.",
            taps=", ".join(taps),
        )
    return config.teacher_weights


def _weighted(
    weights: Sequence[float | torch.Tensor], values: Sequence[torch.Tensor]
) -> torch.Tensor:
    total = weights[0] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total = total + weight * value
    return total
