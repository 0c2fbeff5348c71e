"""What a student learns from cached tensors: one file a method, named loss terms.

To add a method, write one file in this folder, decorate its class with `register`, and import it
below; nothing else has to change.
"""

from rdcache.methods.at import AttentionTransfer
from rdcache.methods.base import (
    TASKS,
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
from rdcache.methods.crd import ContrastiveRepresentationDistillation
from rdcache.methods.direct import DirectReprogramming
from rdcache.methods.dist import CorrelationDistillation
from rdcache.methods.dkd import DecoupledDistillation
from rdcache.methods.drd import DeepReprogrammingDistillation
from rdcache.methods.hint import Hint
from rdcache.methods.kd import KnowledgeDistillation
from rdcache.methods.logit_standardisation import StandardisedDistillation
from rdcache.methods.mgd import MaskedGenerativeDistillation
from rdcache.methods.mlkd import MultiLevelDistillation
from rdcache.methods.none import PlainStudent
from rdcache.methods.norm import ManyToOneMatching
from rdcache.methods.pcka import PatchAlignment
from rdcache.methods.pkt import ProbabilisticTransfer
from rdcache.methods.rcka import RelationAlignment
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
from rdcache.methods.reviewkd import KnowledgeReview
from rdcache.methods.rkd import RelationalDistillation
from rdcache.methods.scalekd import ScaleKD
from rdcache.methods.sdd import ScaleDecoupledDistillation
from rdcache.methods.semckd import SemanticCalibration
from rdcache.methods.sp import SimilarityPreserving
from rdcache.methods.srrl import SoftmaxRegression
from rdcache.methods.task_losses import (
    ClassWeights,
    MulticlassLoss,
    MultilabelLoss,
    SegmentationLoss,
    TaskLoss,
    task_loss,
)
from rdcache.methods.teacher_logits import TeacherHeadName
from rdcache.methods.vid import VariationalInformationDistillation
from rdcache.methods.vkd import OrthogonalProjectionDistillation

__all__ = [
    "TASKS",
    "AttentionTransfer",
    "CachedBatch",
    "ChannelStatistics",
    "ClassWeights",
    "ContrastiveRepresentationDistillation",
    "CorrelationCongruence",
    "CorrelationDistillation",
    "DecoupledDistillation",
    "DeepReprogrammingDistillation",
    "DirectReprogramming",
    "Hint",
    "KnowledgeDistillation",
    "KnowledgeReview",
    "ManyToOneMatching",
    "MaskedGenerativeDistillation",
    "Method",
    "MethodCard",
    "MethodConfig",
    "MethodContext",
    "MultiLevelDistillation",
    "MulticlassLoss",
    "MultilabelLoss",
    "OrthogonalProjectionDistillation",
    "PatchAlignment",
    "PlainStudent",
    "ProbabilisticTransfer",
    "RDOfSeveralTeachers",
    "RelationAlignment",
    "RelationalDistillation",
    "ReprogrammingDistillation",
    "ScaleDecoupledDistillation",
    "ScaleKD",
    "SegmentationLoss",
    "SemanticCalibration",
    "SimilarityPreserving",
    "SoftmaxRegression",
    "StageName",
    "StandardisedDistillation",
    "TaskLoss",
    "TeacherHeadName",
    "Terms",
    "TrainingProgress",
    "VariationalInformationDistillation",
    "add_preset",
    "create_method",
    "find_method",
    "list_methods",
    "register",
    "task_loss",
]
