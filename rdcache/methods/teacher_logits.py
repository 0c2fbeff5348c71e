"""What a frozen teacher says about the classes of a dataset that it was never trained for.

Foundation models have no logits of the task, and logit distillation needs some. `--teacher-head`
says where they come from:

own           the store's own `logits`, of a teacher that was trained for these classes
              (`rdcache adapt`, a black box with a head)
linear-probe  a logistic regression on the cached features, fitted once before training
rd            a reprogrammer and a classifier that are trained in a first stage and frozen then, as
              in `direct`
none          there are none: terms that want them are left out, methods that need them refuse
auto          own where the store has them, else linear-probe; rd where the labels are several
              a sample, for which there is no probe
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from rdcache.errors import UsageError
from rdcache.methods.base import MethodContext
from rdcache.methods.layers import positions_of
from rdcache.methods.rd import teacher_branch
from rdcache.methods.reprogrammer import ReprogrammerConfig
from rdcache.store.tap_axes import as_maps

TeacherHeadName = Literal["auto", "own", "linear-probe", "rd", "none"]
OWN, POOLED = "logits", "pooled"


def linear_logits(features: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Apply a linear layer to features (B, D), or to each position of maps (B, D, H, W).

    Computed in float32 at least, also under autocast.

    Args:
        weight: (C, D).
        bias: (C,).

    Returns:
        Logits, (B, C) or (B, C, H, W).
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        rows = features.to(dtype).movedim(1, -1)
        return (rows @ weight.to(dtype).T + bias.to(dtype)).movedim(-1, 1)


class TeacherHead(nn.Module):
    """Features and logits of the teacher, from its cached taps.

    Attributes:
        tap: the tap that it reads.
        trains: whether a first stage has to train it.
    """

    tap: str
    trains = False

    def forward(self, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (B, ·) and logits (B, C), in float32 but where autocast runs a branch."""
        raise NotImplementedError


class OwnHead(TeacherHead):
    """The logits that the store holds; they are the features too."""

    def __init__(self, tap: str) -> None:
        super().__init__()
        self.tap = tap

    def forward(self, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the stored logits twice."""
        logits = taps[self.tap].float()
        return logits, logits


class ProbeHead(TeacherHead):
    """A linear classifier, fitted before training, on a tap averaged over positions.

    Linear as it is, it also gives logits of every position of a map, whose mean are the tap's.
    """

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, tap: str, context: MethodContext) -> None:
        super().__init__()
        self.tap = context.tap(tap).name
        self.kind = context.tap(tap).kind
        weight, bias = context.probe(self.tap)
        self.register_buffer("weight", weight.float())
        self.register_buffer("bias", bias.float())

    def forward(self, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the averaged tap (B, channels) and its logits (B, C)."""
        maps = as_maps(taps[self.tap].float(), self.kind)
        features = maps.mean(dim=positions_of(maps))
        return features, linear_logits(features, self.weight, self.bias)


class BranchHead(TeacherHead):
    """A reprogrammer and a classifier of its own, which a first stage trains."""

    trains = True

    def __init__(self, context: MethodContext) -> None:
        super().__init__()
        config = ReprogrammerConfig()
        self.tap = context.tap(config.tap).name
        self.branch = teacher_branch(config, context, share=False)

    def forward(self, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reprogrammed features (B, D) and their logits (B, C)."""
        features, logits = self.branch(taps[self.tap])
        return features, logits


def create_teacher_head(
    name: TeacherHeadName, context: MethodContext, probed_tap: str | None = None
) -> TeacherHead | None:
    """Build the head that a method takes the teacher's logits from; None where there are none.

    Args:
        probed_tap: the tap that a probe is fitted on; by default the pooled one, where the store
            holds it, else the teacher's default tap.

    Raises:
        UsageError: `own` is asked for and the store has no logits of these classes, or a probe
            where a sample has more than one label.
        UnknownNameError: no such tap in the store.
    """
    own = context.tap_of_teacher(OWN)
    if own is not None and (
        own in context.foreign_logits or context.taps[own].shape != (context.num_classes,)
    ):
        own = None
    if name == "auto":
        fitted: TeacherHeadName = "rd" if context.task == "multilabel" else "linear-probe"
        name = fitted if own is None else "own"
    if name == "none":
        return None
    if name == "rd":
        return BranchHead(context)
    if name == "own":
        if own is None:
            raise UsageError(
                f"the store has no logits of its {context.num_classes} classes.",
                taps=", ".join(context.taps),
                next="--teacher-head linear-probe, or a teacher of rdcache adapt",
            )
        return OwnHead(own)
    if context.task != "multiclass":
        raise UsageError(
            "a linear probe is fitted to one class a sample.",
            task=context.task,
            next="--teacher-head rd",
        )
    return ProbeHead(probed_tap or pooled_tap(context), context)


def pooled_tap(context: MethodContext) -> str:
    """The tap whose mean over positions stands for an image unless another is named: the teacher's
    pooled features, where the store holds them, else its default tap.
    """
    return context.tap_of_teacher(POOLED) or context.tap(None).name
