"""Whole grids of methods, as in the paper's Tables 3 and 4."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rdcache.report import published
from rdcache.report.comparison import Comparison
from rdcache.report.entries import (
    MISSING,
    best_of,
    distinct,
    mean_by_seed,
    published_entry,
)
from rdcache.report.notes import (
    about_marks,
    about_paper,
    dataset_names,
    metric_of,
    notes_on,
)
from rdcache.report.tables import Entry, Heading, Table, as_percent, with_best


def methods_table(
    title: str, comparisons: Sequence[Comparison], baseline: str, reference: bool
) -> Table:
    """Teachers in blocks, methods as lines, students of each dataset as columns."""
    cells = {(*item.row.place, item.row.method): item for item in comparisons}
    metrics = {it.row.dataset: it.metric for it in comparisons}
    names = dataset_names(comparisons)
    columns = distinct(comparisons, lambda it: (it.row.dataset, it.row.student))
    lines_of = distinct(comparisons, lambda it: (it.row.teacher, it.row.method))
    taken: list[list[Entry]] = []
    headings = [Heading("teacher"), Heading("method")]
    for dataset, student in columns:
        entries: list[Entry] = []
        for teacher in dict.fromkeys(teacher for teacher, _ in lines_of):
            block = [cells.get((dataset, t, student, m)) for t, m in lines_of if t == teacher]
            entries += best_of(block, [item.values if item else {} for item in block])
        taken.append(entries)
        headings.append(Heading(student, names[dataset], "%"))
        paper = [
            published.published_accuracy(dataset, t, student, m, metrics[dataset])
            for t, m in lines_of
        ]
        if reference and any(value is not None for value in paper):
            taken.append([published_entry(value) for value in paper])
            headings.append(Heading(f"{student}, paper", names[dataset], "%"))
    lines = tuple(
        (Entry(teacher), Entry(method), *(column[number] for column in taken))
        for number, (teacher, method) in enumerate(lines_of)
    )
    notes = (*about_marks(comparisons, baseline), *notes_on(comparisons))
    if reference:
        notes += about_paper(len(headings) > len(columns) + 2)
        notes += _about_teachers(metrics, list(dict.fromkeys(teacher for teacher, _ in lines_of)))
    return Table(title, tuple(headings), lines, block=2, notes=notes)


def peft_table(
    title: str, comparisons: Sequence[Comparison], baseline: str, reference: bool
) -> Table:
    """Datasets and students as lines, methods as columns, and averages over what all have."""
    cells = {(*item.row.place, item.row.method): item for item in comparisons}
    places = distinct(comparisons, lambda it: (it.row.dataset, it.row.student))
    pairs = distinct(comparisons, lambda it: (it.row.teacher, it.row.method))
    several = len({teacher for teacher, _ in pairs}) > 1
    names = dataset_names(comparisons)
    headings = [Heading("dataset"), Heading("student")]
    headings += [Heading(method, teacher if several else "", "%") for teacher, method in pairs]
    lines = []
    for dataset, student in places:
        found = [cells.get((dataset, teacher, student, method)) for teacher, method in pairs]
        shown = best_of(found, [item.values if item else {} for item in found])
        lines.append((Entry(names[dataset]), Entry(student), *shown))
    whole = [
        place for place in places if all((place[0], t, place[1], m) in cells for t, m in pairs)
    ]
    # An average over unlike metrics means nothing.
    if len(whole) > 1 and len({item.metric for item in comparisons}) == 1:
        by_seed = [mean_by_seed([cells[d, t, s, m].values for d, s in whole]) for t, m in pairs]
        averages = [as_percent(values) if values else MISSING for values in by_seed]
        most = max(map(len, by_seed))
        shown = with_best(averages, [len(values) == most for values in by_seed])
        lines.append((Entry("average"), Entry(f"of {len(whole)}"), *shown))
    notes = (*about_marks(comparisons, baseline), *notes_on(comparisons))
    if reference and metric_of(comparisons) == published.METRIC:
        averages_there = ", ".join(f"{m} {v:.2f}" for m, v in published.PEFT_AVERAGES.items())
        notes += (
            f"The paper's averages over busi, btc, isic and covid with its three students and "
            f"LVM-Med: {averages_there} ({published.SOURCE}).",
        )
    return Table(title, tuple(headings), tuple(lines), block=2, notes=notes)


def _about_teachers(metrics: Mapping[str, str], teachers: Sequence[str]) -> tuple[str, ...]:
    """The paper's accuracies of the teachers themselves.

    Args:
        metrics: dataset → what it is compared by.
    """
    notes = []
    for teacher in teachers:
        there = {
            dataset: published.published_fine_tuned(dataset, teacher, metric)
            for dataset, metric in metrics.items()
        }
        told = ", ".join(f"{name} {value:.2f}" for name, value in there.items() if value)
        if told:
            notes.append(f"{teacher} itself, fully fine-tuned, in the paper: {told}.")
    return tuple(notes)
