"""What cached features are worth for a task, found from the stores alone.

Knows stores and numbers; knows no student and no method.
"""

from rdcache.transferability.config import RankConfig
from rdcache.transferability.knn import knn_scores
from rdcache.transferability.linear_probe import LinearProbe, fit_linear_probe
from rdcache.transferability.logme import logme
from rdcache.transferability.pooled_features import pooled_features, usable_rows
from rdcache.transferability.ranking import Ranking, TapScore, TeacherSimilarity, rank

__all__ = [
    "LinearProbe",
    "RankConfig",
    "Ranking",
    "TapScore",
    "TeacherSimilarity",
    "fit_linear_probe",
    "knn_scores",
    "logme",
    "pooled_features",
    "rank",
    "usable_rows",
]
