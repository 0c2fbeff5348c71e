"""Knowledge distillation: the student imitates the teacher's softened predictions.

    L = CE(z_s, y) + w·τ²·KL(p_t ‖ p_s)

Hinton et al., "Distilling the Knowledge in a Neural Network", 2015. CE and KL weigh 1 each, as in
the code that the paper's recipe comes from (SemCKD's), rather than 0.1 and 0.9.
"""

from __future__ import annotations

from rdcache.methods.base import (
    CLASSIFICATION,
    IMAGES_AND_VOLUMES,
    CachedBatch,
    Terms,
    TrainingProgress,
)
from rdcache.methods.baseline import Baseline
from rdcache.methods.registry import register
from rdcache.models import StudentOutput


@register(
    "kd",
    title="Knowledge distillation on logits",
    needs="logits of the teacher (--teacher-head)",
    paper="Hinton et al., NIPS workshop",
    year=2015,
)
class KnowledgeDistillation(Baseline):
    """Terms: `ce` and `kl`."""

    needs_logits = True
    tasks = CLASSIFICATION
    dimensions = IMAGES_AND_VOLUMES

    def own_terms(
        self, batch: CachedBatch, student: StudentOutput, progress: TrainingProgress
    ) -> Terms:
        """Compute the divergence from the teacher's softened prediction."""
        kl = self.task_loss.kl(student.logits, self.teacher_logits(batch), self.config.temperature)
        return {"kl": self.config.weight * kl}
