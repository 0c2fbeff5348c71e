"""Sentences below a table: what makes a row no fair comparison, what diverged, what marks mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rdcache.report import published
from rdcache.report.comparison import Comparison
from rdcache.report.tables import MARK, SURE


def notes_on(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    """What makes rows no fair comparison with their baseline, and which trainings diverged."""
    several = len({item.row.place for item in comparisons}) > 1
    notes = []
    for item in comparisons:
        where = f"{', '.join(item.row.place)}: " if several else ""
        notes += [where + note for note in _about(item)]
    return (*dict.fromkeys(notes), *_about_diverged(comparisons))


def _about(item: Comparison) -> list[str]:
    """What is to be said of one row."""
    method = item.row.method
    if item.candidates:
        among = " or ".join(f"--baseline '{name}'" for name in item.candidates)
        return [f"{method} has no gain: no baseline was trained as it was; choose by {among}."]
    if item.base is None:
        return []
    base, notes = item.base.method, []
    if item.unequal:
        differing = ", ".join(
            f"{name} {own} instead of {other}" for name, (own, other) in item.unequal.items()
        )
        notes.append(f"{method} is compared with {base} at {differing}.")
    if not item.same_images:
        images = {"test": "test", "val": "validation"}[item.row.split]
        return [
            *notes,
            f"{method} has no gain: it was tested on other {images} images than {base}.",
        ]
    theirs = item.base.values.get(item.metric, {})
    seeds = item.differences.keys()
    if item.values and theirs and not seeds:
        notes.append(f"{method} has no gain: it has no seed in common with {base}.")
    elif seeds and (seeds < item.values.keys() or seeds < theirs.keys()):
        notes.append(f"The gain of {method} over {base} is of {seeds_in_words(seeds)} alone.")
    return notes


def seeds_in_words(seeds: Iterable[int]) -> str:
    """`seed 0`, or `seeds 0, 2`."""
    them = sorted(seeds)
    return f"seed{'s' if len(them) > 1 else ''} {', '.join(map(str, them))}"


def about_marks(comparisons: Sequence[Comparison], baseline: str) -> tuple[str, ...]:
    """What the entries are, and what their marks mean."""
    metric = metric_of(comparisons)
    what = f"{metric.replace('_', ' ').capitalize()} in per cent, mean ± std over seeds."
    if not any(item.base and item.of_images for item in comparisons):
        return (what,)
    return (
        what,
        f"{MARK.strip()} differs from {baseline} with p < {SURE:g} over test images (paired "
        "bootstrap, not corrected for the number of entries).",
    )


def about_paper(shown: bool) -> tuple[str, ...]:
    """Where the paper's numbers come from, or why there are none."""
    if shown:
        return (f"Columns of the paper: {published.SOURCE}.",)
    return ("The paper has no sound number for these data sets, teachers, students and metric.",)


def metric_of(comparisons: Sequence[Comparison]) -> str:
    """What is compared: one metric, or each task's own."""
    return " or ".join(dict.fromkeys(item.metric for item in comparisons)) or "accuracy"


def dataset_names(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Datasets as tables call them: with the metric that they are compared by, where there are
    several.
    """
    metrics: dict[str, list[str]] = {}
    for item in comparisons:
        metrics.setdefault(item.row.dataset, []).append(item.metric)
    several = len({metric for each in metrics.values() for metric in each}) > 1
    return {
        name: f"{name}, {' or '.join(dict.fromkeys(own)).replace('_', ' ')}" if several else name
        for name, own in metrics.items()
    }


def _about_diverged(comparisons: Sequence[Comparison]) -> tuple[str, ...]:
    return tuple(
        f"Training diverged: {', '.join((*item.row.place, item.row.method))}, "
        f"{seeds_in_words(item.row.diverged)}."
        for item in comparisons
        if item.row.diverged
    )
