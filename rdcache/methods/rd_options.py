"""Options of reprogramming distillation; the defaults are the recommended preset."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rdcache import losses
from rdcache.methods.reprogrammer import ReprogrammerConfig

Decay = Literal["linear", "none", "cosine"]
Gradient = Literal["both", "student", "teacher"]


class RDConfig(ReprogrammerConfig):
    """Options of RD."""

    finer_tap: bool = Field(
        default=True,
        description="Where no tap is named, and there is one teacher: read the coarsest map, as "
        "stored, that is finer than the teacher's default tap, if there is one.",
    )
    spatial: Literal["map", "pooled"] = Field(
        default="map", description="Reprogram the map and pool after, or pool the tap first."
    )
    map_side: int | None = Field(
        default=9,
        ge=1,
        description="With spatial=map: average larger maps down to so many positions a side first; "
        "null leaves them as they are.",
    )
    width: int | None = Field(
        default=128,
        ge=4,
        description="Channels inside the blocks; null for the student's feature width.",
    )
    share_classifier: bool = Field(
        default=True, description="One classifier for both branches, as in the paper."
    )
    alpha: float = Field(default=1.0, ge=0, description="Weight of the teacher branch's CE.")
    beta: float = Field(default=1.0, ge=0, description="Weight of the KL term.")
    decay: Decay = Field(default="linear", description="How alpha and beta fall during training.")
    decay_unit: Literal["epoch", "step"] = Field(
        default="epoch", description="Whether they fall once an epoch or with every step."
    )
    decay_to: float = Field(
        default=0.0, ge=0, le=1, description="Share of alpha and beta that is left at the end."
    )
    temperature: float = Field(default=4.0, gt=0, description="τ of the KL term.")
    kl_direction: Literal["t2s", "s2t", "sym"] = Field(
        default="t2s",
        description="KL(teacher‖student), KL(student‖teacher), or the mean of both.",
    )
    kl_grad: Gradient = Field(
        default="student", description="Which side the KL term moves; the other is detached."
    )
    cka_weight: float = Field(default=1.0, ge=0, description="Weight of 1 − CKA.")
    cka_decay: Decay = Field(default="none", description="How this weight falls during training.")
    cka_estimator: Literal["unbiased", "biased"] = Field(
        default="unbiased", description="Estimator of HSIC within CKA; the paper's is biased."
    )
    cka_grad: Gradient = Field(
        default="student", description="Which side the CKA term moves; the other is detached."
    )
    cka_min_batch: int = Field(
        default=8,
        ge=losses.MIN_SAMPLES,
        description="Smallest batch that is accepted with CKA; never below 4.",
    )
    cka_target: Literal["reprogrammed", "teacher"] = Field(
        default="teacher",
        description="What the student's features are compared with: the reprogrammed features, as "
        "in the paper, or the teacher's own, averaged over positions.",
    )
    folds: int = Field(
        default=0,
        ge=0,
        description="If not 0: the KL target of a training image comes from a teacher branch that "
        "was trained, in a first stage, on the other folds. 0, as in the paper: from the branch "
        "that trains beside the student.",
    )
    calibrate_folds: bool = Field(
        default=True,
        description="Divide the logits of the folds' branches by the temperature under which, in "
        "the last epoch of their stage, their loss on images they have not seen is smallest.",
    )
    teacher_ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="If not 0: the branch that trains beside the student teaches by its moving "
        "average, with this decay per step.",
    )
    teacher_epochs: int = Field(
        default=0,
        ge=0,
        description="Epochs of a first stage without any forward pass of the student: of the "
        "branches of the folds, or, without folds, of the teacher branch.",
    )

    teacher_weights: tuple[float, ...] | Literal["learned"] | None = Field(
        default=None,
        description="Of several teachers: the weight of each, summing to 1, as in 0.5,0.3,0.2, or "
        "learned (default: equal).",
    )

    @field_validator("teacher_weights", mode="before")
    @classmethod
    def _listed(cls, weights: object) -> object:
        """`0.5,0.3,0.2`, as the command line has it."""
        listed = isinstance(weights, str) and weights != "learned"
        return tuple(str(weights).split(",")) if listed else weights

    @model_validator(mode="after")
    def _options_go_together(self) -> RDConfig:
        if self.cka_target == "teacher" and self.cka_grad == "teacher":
            raise ValueError("the teacher's own features are frozen: cka_grad=student or both")
        if self.folds == 1:
            raise ValueError("folds is 0, for none, or at least 2")
        if self.folds and not self.teacher_epochs:
            raise ValueError("the branches of folds need teacher_epochs of at least 1")
        self._require_gradients()
        weights = self.teacher_weights
        if isinstance(weights, tuple) and not (
            all(weight > 0 for weight in weights) and math.isclose(sum(weights), 1, abs_tol=1e-6)
        ):
            raise ValueError("teacher_weights are to be positive and to sum to 1")
        return self

    def _require_gradients(self) -> None:
        """Refuse terms that would move nothing, and an average that nothing would read."""
        own_features = self.cka_target == "teacher"
        if self.kl_grad == "teacher" and (self.folds or self.teacher_ema):
            raise ValueError("folds and teacher_ema are frozen targets: kl_grad=student or both")
        if self.cka_grad == "teacher" and self.teacher_ema:
            raise ValueError("the averaged branch is frozen: cka_grad=student or both")
        if self.teacher_ema and self.folds and own_features:
            raise ValueError(
                "teacher_ema would teach nothing: KL has the folds for its target, and CKA the "
                "teacher's own features"
            )
