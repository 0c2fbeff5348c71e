"""The common ground of methods that want more of a teacher than its logits: the linear layer that
they come from, to apply it to something else.

Stored logits (`own`) come without that layer, and a reprogrammer (`rd`) is none, so the head of
these methods is always a linear probe.
"""

from __future__ import annotations

from rdcache.errors import UsageError
from rdcache.methods.base import MethodContext
from rdcache.methods.baseline import Baseline, BaselineConfig
from rdcache.methods.teacher_logits import ProbeHead


class ProbedBaseline(Baseline):
    """Base of methods whose head is a linear probe; `auto` means no other here.

    Attributes:
        head: its weight (C, channels) and bias (C,) are those of the probe.
    """

    needs_logits = True
    head: ProbeHead

    def __init__(self, config: BaselineConfig, context: MethodContext) -> None:
        if config.teacher_head in ("own", "rd"):
            raise UsageError(
                "this method applies the teacher's linear layer to other features than its own.",
                teacher_head=config.teacher_head,
                why="stored logits come without that layer, and a reprogrammer is none",
                next="--teacher-head linear-probe",
            )
        if config.teacher_head == "auto":
            config = config.model_copy(update={"teacher_head": "linear-probe"})
        super().__init__(config, context)
