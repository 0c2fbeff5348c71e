"""What a frozen teacher says about the classes of a dataset that it was never trained for.

Foundation models have no logits of the task, and logit distillation needs some. `--teacher-head`
says where they come from:

own           the store's own `logits`, of a teacher that was trained for these classes
              (`rdcache adapt`, a black box with a head)
linear-probe  a logistic regression on the cached features, fitted once before training
rd            a reprogrammer and a classifier that are trained in a first stage and frozen then, as
              in `direct`
none          there are none: terms that want them are left out, methods that need them refuse
auto          own where the store has them, else linear-probe
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import nn

from rdcache.errors import UsageError
from rdcache.methods.base import MethodContext
from rdcache.methods.rd import teacher_branch
from rdcache.methods.reprogrammer import ReprogrammerConfig
from rdcache.store.tap_axes import as_maps

TeacherHeadName = Literal["auto", "own", "linear-probe", "rd", "none"]
OWN, POOLED = "logits", "pooled"


class TeacherHead(nn.Module):
    """Features and logits of the teacher, from its cached taps.

    Attributes:
        tap: the tap that it reads.
        trains: whether a first stage has to train it.
    """

    tap: str
    trains = False

    def forward(self, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (B, ·) and logits (B, C), both in float32."""
        raise NotImplementedError


class OwnHead(TeacherHead):
    """The logits that the store holds; they are the features too."""

    tap = OWN

    def forward(self, taps: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the stored logits twice."""
        logits = taps[OWN].float()
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
        features = as_maps(taps[self.tap].float(), self.kind).mean(dim=(2, 3))
        return features, features @ self.weight.T + self.bias


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
        UsageError: `own` is asked for and the store has no logits of these classes.
        UnknownNameError: no such tap in the store.
    """
    fitting = OWN in context.taps and context.taps[OWN].shape == (context.num_classes,)
    has_own = fitting and not context.foreign_logits
    if name == "auto":
        name = "own" if has_own else "linear-probe"
    if name == "none":
        return None
    if name == "rd":
        return BranchHead(context)
    if name == "own":
        if not has_own:
            raise UsageError(
                f"the store has no logits of its {context.num_classes} classes.",
                taps=", ".join(context.taps),
                next="--teacher-head linear-probe, or a teacher of rdcache adapt",
            )
        return OwnHead()
    if probed_tap is None:
        probed_tap = POOLED if POOLED in context.taps else context.tap(None).name
    return ProbeHead(probed_tap, context)
