"""Tables and pictures from finished runs."""

from rdcache.report.comparison import Comparison, Row, compare, markdown
from rdcache.report.learning_curve import learning_curve, runs_below

__all__ = ["Comparison", "Row", "compare", "learning_curve", "markdown", "runs_below"]
