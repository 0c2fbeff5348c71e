"""Tables and pictures from finished runs."""

from rdcache.report.comparison import Comparison, compare, in_percent, require_names
from rdcache.report.formats import as_csv, as_latex, as_markdown
from rdcache.report.forms import FORMS
from rdcache.report.learning_curve import learning_curve, runs_below
from rdcache.report.plain import plain_table
from rdcache.report.rows import Row, row_of, rows_of_folders
from rdcache.report.significance import Gain, ImageTest, image_test, mcnemar, paired_gain
from rdcache.report.tables import Entry, Heading, Table

__all__ = [
    "FORMS",
    "Comparison",
    "Entry",
    "Gain",
    "Heading",
    "ImageTest",
    "Row",
    "Table",
    "as_csv",
    "as_latex",
    "as_markdown",
    "compare",
    "image_test",
    "in_percent",
    "learning_curve",
    "mcnemar",
    "paired_gain",
    "plain_table",
    "require_names",
    "row_of",
    "rows_of_folders",
    "runs_below",
]
