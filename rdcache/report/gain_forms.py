"""What methods gain over the plain student, as in the paper's Table 6 and in its ablation."""

from __future__ import annotations

from collections.abc import Sequence

from rdcache.report import published
from rdcache.report.comparison import Comparison, in_points
from rdcache.report.entries import (
    MISSING,
    about_diverged,
    about_paper,
    differences,
    distinct,
    mean_by_seed,
    published_entry,
)
from rdcache.report.plain import as_p, metric_entry, notes_on, over_images, seeds_of
from rdcache.report.tables import Entry, Heading, Table, as_gain


def gains_table(
    title: str, comparisons: Sequence[Comparison], baseline: str, reference: bool
) -> Table:
    """Gains over the baseline, averaged over students seed by seed: mean ± std over seeds."""
    gained = [item for item in comparisons if item.base is not None]
    datasets = list(dict.fromkeys(item.row.dataset for item in gained))
    lines_of = distinct(gained, lambda it: (it.row.teacher, it.row.method))
    headings = [Heading("teacher"), Heading("method")]
    taken: list[list[Entry]] = []
    for dataset in datasets:
        entries = []
        for pair in lines_of:
            own = [
                it
                for it in gained
                if it.row.dataset == dataset and (it.row.teacher, it.row.method) == pair
            ]
            gains = mean_by_seed([differences(it) for it in own])
            entries.append(as_gain(gains) if gains else MISSING)
        taken.append(entries)
        headings.append(Heading(dataset))
        paper = [published.published_gain(dataset, *pair) for pair in lines_of]
        if reference and any(value is not None for value in paper):
            taken.append([published_entry(value, "+.2f") for value in paper])
            headings.append(Heading(f"{dataset}, paper"))
    lines = tuple(
        (Entry(teacher), Entry(method), *(column[number] for column in taken))
        for number, (teacher, method) in enumerate(lines_of)
    )
    students = list(dict.fromkeys(item.row.student for item in gained))
    notes = (
        f"Points over {baseline}, averaged over {', '.join(students)}; ± over seeds.",
        *notes_on(comparisons),
        *about_diverged(comparisons),
    )
    if reference:
        notes += about_paper(len(headings) > len(datasets) + 2)
    return Table(title, tuple(headings), lines, block=2, notes=notes)


def ablation_table(
    title: str, comparisons: Sequence[Comparison], baseline: str, reference: bool
) -> Table:
    """Variants in the order of the grid, each with its gain over the baseline."""
    places = distinct(comparisons, lambda it: it.row.place)
    names = ["dataset", "teacher", "student"] if len(places) > 1 else []
    paper = [
        published.published_ablation(it.row.dataset, it.row.student, it.row.method)
        for it in comparisons
    ]
    shown = reference and any(value is not None for value in paper)
    metric = comparisons[0].metric if comparisons else "accuracy"
    own = [metric, f"gain over {baseline} (95 %)", "over images (95 %)", "p (images)", "seeds"]
    headings = [*names, "variant", *(["paper"] if shown else []), *own]
    lines = []
    for item, value in zip(comparisons, paper, strict=True):
        place = [Entry(part) for part in item.row.place] if names else []
        lines.append(
            (
                *place,
                Entry(item.row.method),
                *([published_entry(value)] if shown else []),
                metric_entry(item, item.metric),
                Entry(in_points(item.gain)),
                Entry(over_images(item.images)),
                Entry(as_p(item.images)),
                Entry(seeds_of(item)),
            )
        )
    at = "" if names or not places else f" ({', '.join(places[0])})"
    notes = (*notes_on(comparisons), *about_diverged(comparisons))
    if reference:
        notes += about_paper(shown)
    return Table(
        title + at, tuple(Heading(name) for name in headings), tuple(lines), len(names) + 1, notes
    )
