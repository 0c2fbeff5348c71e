"""What a student learns from cached tensors: one file a method, named loss terms.

To add a method, write one file in this folder, decorate its class with `register`, and import it
below; nothing else has to change.
"""

from rdcache.methods.base import (
    CachedBatch,
    ChannelStatistics,
    Method,
    MethodConfig,
    MethodContext,
    StageName,
    Terms,
    TrainingProgress,
)
from rdcache.methods.direct import DirectReprogramming
from rdcache.methods.hint import Hint
from rdcache.methods.kd import KnowledgeDistillation
from rdcache.methods.none import PlainStudent
from rdcache.methods.rd import ReprogrammingDistillation
from rdcache.methods.rd_of_several import RDOfSeveralTeachers
from rdcache.methods.registry import (
    MethodCard,
    add_preset,
    create_method,
    find_method,
    list_methods,
    register,
)
from rdcache.methods.task_losses import ClassWeights, MulticlassLoss, TaskLoss, task_loss
from rdcache.methods.teacher_logits import TeacherHeadName

__all__ = [
    "CachedBatch",
    "ChannelStatistics",
    "ClassWeights",
    "DirectReprogramming",
    "Hint",
    "KnowledgeDistillation",
    "Method",
    "MethodCard",
    "MethodConfig",
    "MethodContext",
    "MulticlassLoss",
    "PlainStudent",
    "RDOfSeveralTeachers",
    "ReprogrammingDistillation",
    "StageName",
    "TaskLoss",
    "TeacherHeadName",
    "Terms",
    "TrainingProgress",
    "add_preset",
    "create_method",
    "find_method",
    "list_methods",
    "register",
    "task_loss",
]
