"""Tables and pictures from finished runs."""

from rdcache.report.comparison import Comparison, compare, require_names
from rdcache.report.finished import Found, finished_students
from rdcache.report.folders import rows_of_folders
from rdcache.report.forms import FORMS
from rdcache.report.learning_curve import learning_curve, runs_below
from rdcache.report.plain_form import plain_table
from rdcache.report.rows import (
    DISTANCES,
    LEAK_FREE,
    METRICS,
    METRICS_BESIDE,
    PLAIN,
    Row,
    distinguished,
    leak_free,
    row_of,
    told_by_validation,
)
from rdcache.report.significance import Gain, ImageTest, image_test, mcnemar, paired_gain
from rdcache.report.tables import Entry, Heading, Table
from rdcache.report.text_formats import as_csv, as_latex, as_markdown

__all__ = [
    "DISTANCES",
    "FORMS",
    "LEAK_FREE",
    "METRICS",
    "METRICS_BESIDE",
    "PLAIN",
    "Comparison",
    "Entry",
    "Found",
    "Gain",
    "Heading",
    "ImageTest",
    "Row",
    "Table",
    "as_csv",
    "as_latex",
    "as_markdown",
    "compare",
    "distinguished",
    "finished_students",
    "image_test",
    "leak_free",
    "learning_curve",
    "mcnemar",
    "paired_gain",
    "plain_table",
    "require_names",
    "row_of",
    "rows_of_folders",
    "runs_below",
    "told_by_validation",
]
