"""Running a student on from maps that were put in place of its own: the hybrid passes of DRD.

The streams of all injected stages run as one batch from the first stage that they share: where a
second one is injected it is concatenated to the first, and so on. Batch statistics are taken of
each stream by itself, so that the result is that of one pass after another.

What the passes do to the student's batch norms is `NormMode`:

batch   normalise by the statistics of the stream; running statistics stay as they are, bit for bit
split   as `batch`, with scales and shifts of its own for each stream
shared  as the student's own pass: running statistics take notice of every stream
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rdcache.models import Student

NormMode = Literal["batch", "split", "shared"]


class HybridPasses(nn.Module):
    """What a student makes of injected maps.

    Args:
        student: whose weights these passes use; they are not this module's.
        stages: which are replaced, shallow to deep.
        norms: what happens to batch norms.
        train_student: whether gradients reach the student's weights, and its own shallower maps.

    Attributes:
        own_norms: with `split`, copies of the student's batch norms, for each stage all of them.
    """

    def __init__(
        self, student: Student, stages: Sequence[str], norms: NormMode, train_student: bool
    ) -> None:
        super().__init__()
        self._student = (student,)  # in a tuple: a module would take its weights for its own
        self.mode, self.train_student = norms, train_student
        own = _batch_norms(student) if norms == "split" else []
        self.own_norms = nn.ModuleList(
            nn.ModuleList(copy.deepcopy(norm) for norm in own) for _ in stages
        )

    def forward(
        self, injected: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Compute logits by stage.

        Args:
            injected: stage → map (B, C, *positions) in its place, shallow to deep.
            own: the student's own maps, of all stages that something behind an injected one sees.
        """
        (student,) = self._student
        batch = len(next(iter(injected.values())))
        if not self.train_student:
            own = {stage: maps.detach() for stage, maps in own.items()}
        with (
            nullcontext() if self.train_student else frozen(student),
            self._each_stream_by_itself(student, batch),
        ):
            logits = _concluded(student, injected, own, batch)
        return dict(zip(injected, logits.split(batch), strict=True))

    @contextmanager
    def _each_stream_by_itself(self, student: Student, batch: int) -> Iterator[None]:
        """Let the student's batch norms see the streams of a batch one by one."""
        norms = _batch_norms(student)
        tracked = [norm.track_running_stats for norm in norms]
        for number, norm in enumerate(norms):
            forward = partial(self._normalised, batch, number, norm.forward)
            norm.__dict__["forward"] = forward  # found before the method of the class
            norm.track_running_stats = tracked[number] and self.mode == "shared"
        try:
            yield
        finally:
            for norm, before in zip(norms, tracked, strict=True):
                del norm.__dict__["forward"]
                norm.track_running_stats = before

    def _normalised(
        self,
        batch: int,
        number: int,
        shared: Callable[[torch.Tensor], torch.Tensor],
        maps: torch.Tensor,
    ) -> torch.Tensor:
        parts = maps.split(batch)
        if self.mode == "split":
            own: Sequence[Any] = list(self.own_norms)
            parts = tuple(norms[number](part) for norms, part in zip(own, parts, strict=False))
        else:
            parts = tuple(shared(part) for part in parts)
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def _concluded(
    student: Student,
    injected: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
    batch: int,
) -> torch.Tensor:
    """Run all streams on to the end: logits (streams · B, …), in the order of injection."""
    running: torch.Tensor | None = None
    maps: dict[str, torch.Tensor] = {}
    previous = ""
    for stage in student.backbone.chain:
        if running is not None:
            running = student.advance(previous, running)
        if stage in injected:
            running = injected[stage] if running is None else torch.cat([running, injected[stage]])
        # Streams that are injected further down see the student's own map here, if anything does.
        later = len(injected) - (0 if running is None else len(running) // batch)
        if not later and running is not None:
            maps[stage] = running
        elif stage in own:
            seen = [own[stage]] * later
            maps[stage] = torch.cat(seen if running is None else [running, *seen])
        previous = stage
    return student.conclude(maps).logits


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keep gradients from a module's weights, of what is computed in the meantime."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _batch_norms(module: nn.Module) -> list[_BatchNorm]:
    return [it for it in module.modules() if isinstance(it, _BatchNorm)]
