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
from rdcache.methods.cc import CorrelationCongruence
from rdcache.methods.direct import DirectReprogramming
from rdcache.methods.hint import Hint
from rdcache.methods.kd import KnowledgeDistillation
from rdcache.methods.none import PlainStudent
from rdcache.methods.pcka import PatchAlignment
from rdcache.methods.pkt import ProbabilisticTransfer
from rdcache.methods.rcka import RelationAlignment
from rdcache.methods.rd import ReprogrammingDistillation
from rdcache.methods.registry import (
    MethodCard,
    add_preset,
    create_method,
    find_method,
    list_methods,
    register,
)
from rdcache.methods.reviewkd import KnowledgeReview
from rdcache.methods.rkd import RelationalDistillation
from rdcache.methods.scalekd import ScaleKD
from rdcache.methods.sp import SimilarityPreserving
from rdcache.methods.task_losses import ClassWeights, MulticlassLoss, TaskLoss, task_loss
from rdcache.methods.teacher_logits import TeacherHeadName
from rdcache.methods.vkd import OrthogonalProjectionDistillation

__all__ = [
    "CachedBatch",
    "ChannelStatistics",
    "ClassWeights",
    "CorrelationCongruence",
    "DirectReprogramming",
    "Hint",
    "KnowledgeDistillation",
    "KnowledgeReview",
    "Method",
    "MethodCard",
    "MethodConfig",
    "MethodContext",
    "MulticlassLoss",
    "OrthogonalProjectionDistillation",
    "PatchAlignment",
    "PlainStudent",
    "ProbabilisticTransfer",
    "RelationAlignment",
    "RelationalDistillation",
    "ReprogrammingDistillation",
    "ScaleKD",
    "SimilarityPreserving",
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
