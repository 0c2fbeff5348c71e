"""Tables from finished runs."""

from rdcache.report.comparison import Comparison, Row, compare, markdown

__all__ = ["Comparison", "Row", "compare", "markdown"]
