"""Tables in the paper's forms, from rows of any grid.

`methods`    Table 3: a line for each teacher and method, a column for each dataset and student
`peft`       Table 4: a line for each dataset and student, a column for each (teacher and) method,
             and their averages
`gains`      Table 6: a line for each teacher and method, a column for each dataset, gains averaged
             over the students
`ablation`   a line for each variant with its gain, and how sure that is
`datasets`   what the runs were trained and tested on; our reading of the paper's Table 2
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rdcache.report import published
from rdcache.report.comparison import Comparison
from rdcache.report.entries import distinct
from rdcache.report.gain_forms import ablation_table, gains_table
from rdcache.report.method_forms import methods_table, peft_table
from rdcache.report.plain_form import tested_table
from rdcache.report.tables import MISSING, Entry, Heading, Table


def datasets_table(
    title: str, comparisons: Sequence[Comparison], baseline: str, reference: bool
) -> Table:
    """Classes and numbers of images; of those in the test set, how many also occur in training."""
    first = {item.row.dataset: item.row for item in reversed(comparisons) if item.row.sizes}
    names = ("classes", "train", "val", "test")
    headings = ["dataset", *names, "leaked"]
    if reference:
        headings.append("test, paper")
    lines = []
    for dataset in distinct(comparisons, lambda it: it.row.dataset):
        row = first.get(dataset)
        sizes = [MISSING if row is None else _count(row.sizes[name]) for name in names]
        paper = published.TEST_IMAGES.get(dataset)
        their = [MISSING if paper is None else _count(paper)] if reference else []
        leaked = MISSING if row is None else _count(len(row.leaked))
        lines.append((Entry(dataset), *sizes, leaked, *their))
    return Table(title, tuple(Heading(name) for name in headings), tuple(lines))


def _count(number: int) -> Entry:
    return Entry(str(number), float(number))


FORMS: Mapping[str, Callable[[str, Sequence[Comparison], str, bool], Table]] = {
    "plain": tested_table,
    "methods": methods_table,
    "peft": peft_table,
    "gains": gains_table,
    "ablation": ablation_table,
    "datasets": datasets_table,
}
