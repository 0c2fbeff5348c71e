"""What cached features are worth for a task, found from the stores alone, in seconds.

Knows stores and numbers; knows no student and no method.
"""

from rdcache.transferability.linear_probe import LinearProbe, fit_linear_probe
from rdcache.transferability.pooled_features import pooled_features, usable_rows

__all__ = ["LinearProbe", "fit_linear_probe", "pooled_features", "usable_rows"]
