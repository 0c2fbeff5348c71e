"""What methods gain over the plain student, as in the paper's Table 6 and in its ablation."""

from __future__ import annotations

from collections.abc import Sequence

from rdcache.report import published
from rdcache.report.comparison import Comparison
from rdcache.report.entries import (
    MISSING,
    TEST_HEADINGS,
    distinct,
    gain_entry,
    gain_heading,
    mean_by_seed,
    metric_entry,
    published_entry,
    seeds_entry,
    test_entries,
)
from rdcache.report.notes import about_paper, dataset_names, metric_of, notes_on
from rdcache.report.rows import PLAIN
from rdcache.report.tables import Entry, Heading, Table, as_gain


def gains_table(
    title: str, comparisons: Sequence[Comparison], baseline: str, reference: bool
) -> Table:
    """Gains over the baseline, averaged over students seed by seed: mean ± std over seeds.

    All entries of a column are averages over the same students: those with which every row of the
    column has a gain.
    """
    metric, names = metric_of(comparisons), dataset_names(comparisons)
    gained = [item for item in comparisons if item.base is not None]
    datasets = distinct(gained, lambda it: it.row.dataset)
    lines_of = distinct(gained, lambda it: (it.row.teacher, it.row.method))
    headings = [Heading("teacher"), Heading("method")]
    taken: list[list[Entry]] = []
    over: dict[str, list[str]] = {}
    for dataset in datasets:
        here = [it for it in gained if it.row.dataset == dataset]
        students = over[dataset] = _shared_students(here)
        entries = []
        for pair in lines_of:
            own = [
                it.differences
                for it in here
                if (it.row.teacher, it.row.method) == pair and it.row.student in students
            ]
            gains = mean_by_seed(own)
            entries.append(as_gain(gains) if gains else MISSING)
        taken.append(entries)
        headings.append(Heading(names[dataset], unit="points"))
        theirs = baseline == PLAIN and set(students) == set(published.STUDENTS)
        paper = [published.published_gain(dataset, *pair, here[0].metric) for pair in lines_of]
        if reference and theirs and any(value is not None for value in paper):
            taken.append([published_entry(value, "+.2f") for value in paper])
            headings.append(Heading(f"{names[dataset]}, paper", unit="points"))
    lines = tuple(
        (Entry(teacher), Entry(method), *(column[number] for column in taken))
        for number, (teacher, method) in enumerate(lines_of)
    )
    what = f"Points of {metric.replace('_', ' ')} over {baseline}"
    told = (
        f"{what}; ± over seeds." if gained else f"Without a row of {baseline} there are no gains."
    )
    notes = (told, *_averaged(over), *notes_on(comparisons))
    if reference:
        notes += about_paper(len(headings) > len(datasets) + 2)
    return Table(title, tuple(headings), lines, block=2, notes=notes)


def _shared_students(items: Sequence[Comparison]) -> list[str]:
    """Students with which every teacher and method, of those with any gain, has one."""
    of: dict[tuple[str, str], set[str]] = {}
    for it in items:
        if it.differences:
            of.setdefault((it.row.teacher, it.row.method), set()).add(it.row.student)
    shared = set.intersection(*of.values()) if of else set()
    return [student for student in distinct(items, lambda it: it.row.student) if student in shared]


def _averaged(over: dict[str, list[str]]) -> list[str]:
    """Which students the averages are over, in as few sentences as that takes."""
    by_students: dict[str, list[str]] = {}
    for dataset, students in over.items():
        by_students.setdefault(", ".join(students), []).append(dataset)
    notes = []
    for names, datasets in by_students.items():
        what = f"averaged over {names}." if names else "rows have no student in common."
        where = f"On {', '.join(datasets)}: " if len(by_students) > 1 else ""
        notes.append(f"{where}{what}" if where else f"{what[:1].upper()}{what[1:]}")
    return notes


def ablation_table(
    title: str, comparisons: Sequence[Comparison], baseline: str, reference: bool
) -> Table:
    """Variants in the order of the grid, each with its gain over the baseline."""
    places = distinct(comparisons, lambda it: it.row.place)
    names = ["dataset", "teacher", "student"] if len(places) > 1 else []
    paper = [
        published.published_ablation(it.row.dataset, it.row.student, it.row.method, it.metric)
        for it in comparisons
    ]
    shown = reference and any(value is not None for value in paper)
    metric, datasets = metric_of(comparisons), dataset_names(comparisons)
    headings = [
        *map(Heading, (*names, "variant")),
        *([Heading("paper", unit="%", aside="%")] if shown else []),
        Heading(metric, unit="%", aside="%"),
        gain_heading(metric, baseline),
        *TEST_HEADINGS,
        Heading("seeds"),
    ]
    lines = []
    for item, value in zip(comparisons, paper, strict=True):
        dataset, *others = item.row.place
        place = [Entry(part) for part in (datasets[dataset], *others)] if names else []
        lines.append(
            (
                *place,
                Entry(item.row.method),
                *([published_entry(value)] if shown else []),
                metric_entry(item, item.metric),
                gain_entry(item.gain),
                *test_entries(item.images),
                seeds_entry(item),
            )
        )
    at = "" if names or not places else f" ({', '.join(places[0])})"
    notes = notes_on(comparisons)
    if reference:
        notes += about_paper(shown)
    return Table(title + at, tuple(headings), tuple(lines), len(names) + 1, notes)
