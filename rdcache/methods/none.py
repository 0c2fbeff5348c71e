"""The plain student: labels only, the same budget as any method beside it."""

from __future__ import annotations

from rdcache.methods.base import (
    EVERY_TASK,
    IMAGES_AND_VOLUMES,
    CachedBatch,
    Method,
    Terms,
    TrainingProgress,
)
from rdcache.methods.registry import for_several_taps, register
from rdcache.models import StudentOutput


@for_several_taps()
@register("none", title="Plain student, trained from the labels alone")
class PlainStudent(Method):
    """Term: `ce`."""

    tasks = EVERY_TASK
    dimensions = IMAGES_AND_VOLUMES

    def forward(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the student's cross-entropy."""
        return {"ce": self.task_loss(student.logits, batch.target)}
