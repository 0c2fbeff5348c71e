"""`rdcache rank`: which cached teacher suits a dataset."""

from __future__ import annotations

import click

from rdcache.cli import options
from rdcache.cli.output import (
    json_option,
    print_json,
    print_note,
    print_table,
    printable,
    progress,
)
from rdcache.transferability import RankConfig, Ranking, TeacherSimilarity, rank

COLUMNS = (
    "teacher",
    "tap",
    "channels",
    "probe",
    "± s.e.",
    "balanced",
    "kNN",
    "LogME",
    "p against the first",
)


@click.command(epilog="Example:  rdcache rank --dataset isic")
@options.from_model(RankConfig, teachers="--teacher")
@json_option
def command(config: RankConfig, as_json: bool) -> None:
    """Say which cached teacher, and which tap of it, suits a dataset, from the stores alone.

    A linear probe and 20 nearest neighbours learn from the training images and are judged on the
    validation images, in per cent; LogME looks at the training images, and larger is better. Test
    images are never read.
    """
    with progress("Ranking") as bar:
        ranking = rank(config, on_progress=bar)
    if as_json:
        print_json(ranking.to_dict())
        return
    _print_scores(ranking)
    if ranking.similarity is not None:
        _print_similarity(ranking.similarity)
    for note in ranking.notes:
        print_note(printable(note))


def _print_scores(ranking: Ranking) -> None:
    print_table(
        f"{ranking.dataset}, {ranking.validation_samples} images ({ranking.judged_on}), learnt "
        f"from {ranking.training_samples}; the most frequent class alone: "
        f"{100 * ranking.majority_accuracy:.1f}",
        COLUMNS,
        [
            (
                it.teacher,
                it.tap,
                it.channels,
                f"{100 * it.probe_accuracy:.1f}",
                f"{100 * it.standard_error:.1f}",
                f"{100 * it.probe_balanced_accuracy:.1f}",
                f"{100 * it.knn_accuracy:.1f}",
                f"{it.logme:.3f}",
                "" if it is ranking.best else f"{it.p_value:.2g}",
            )
            for it in ranking.scores
        ],
    )


def _print_similarity(similarity: TeacherSimilarity) -> None:
    numbered = list(enumerate(similarity.taps.items(), start=1))
    print_table(
        f"CKA between teachers, {similarity.samples} images",
        ["", "teacher", "tap", *(str(number) for number, _ in numbered)],
        [
            (number, teacher, tap, *(f"{value:.2f}" for value in row))
            for (number, (teacher, tap)), row in zip(numbered, similarity.cka, strict=True)
        ],
    )
