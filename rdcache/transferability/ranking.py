"""Which cached teacher, and which of its taps, suits a dataset: found from the stores alone.

Each tap is pooled and judged in three ways: a linear probe and nearest neighbours learn from
training samples and are judged on validation samples, and LogME looks at the training samples
alone. Test samples are never read. Beside the order, teachers are compared with each other: CKA of
their best taps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy import stats

from rdcache.configs import config_of_call
from rdcache.losses import MIN_SAMPLES, cka
from rdcache.progress import Progress, ignore
from rdcache.store import Store
from rdcache.transferability.candidates import (
    Candidate,
    classes_of,
    find_candidates,
    leak_notes,
    overlap_notes,
)
from rdcache.transferability.compared_samples import ComparedSamples, choose_samples
from rdcache.transferability.config import RankConfig
from rdcache.transferability.knn import knn_scores
from rdcache.transferability.linear_probe import fit_linear_probe
from rdcache.transferability.logme import logme
from rdcache.transferability.pooled_features import pooled_features

CKA_SAMPLES = 2_000


@dataclass(frozen=True)
class TapScore:
    """What one tap of one teacher is worth; accuracies are fractions of the validation samples.

    Attributes:
        store: where it lies.
        channels: width of the pooled features.
        probe_accuracy: of a linear probe, which has seen no validation sample.
        standard_error: of `probe_accuracy`, by the number of validation samples.
        probe_balanced_accuracy: mean recall of the classes that occur.
        l2: strength of the probe's penalty, chosen by folds of the training samples.
        knn_accuracy: of 20 weighted nearest neighbours.
        logme: mean log evidence per training sample.
        p_value: of the two-sided exact McNemar test of this tap's probe against the first one's;
            1 for the first.
    """

    teacher: str
    tap: str
    store: str
    channels: int
    probe_accuracy: float
    standard_error: float
    probe_balanced_accuracy: float
    l2: float
    knn_accuracy: float
    logme: float
    p_value: float = 1.0


@dataclass(frozen=True)
class TeacherSimilarity:
    """How alike teachers see the same training samples, each through its best tap.

    Attributes:
        taps: teacher → tap, best teacher first.
        cka: unbiased linear CKA, a row for each teacher in that order.
        samples: how many samples were compared.
    """

    taps: dict[str, str]
    cka: tuple[tuple[float, ...], ...]
    samples: int


@dataclass(frozen=True)
class Ranking:
    """Taps in the recommended order: by probe accuracy, by LogME where that is equal.

    Attributes:
        digest: of the dataset with its splits, as the stores have it.
        judged_on: what the validation samples are, in words.
        majority_accuracy: of always naming the most frequent class of the training samples.
        similarity: None where there is one teacher, or fewer samples than CKA needs.
        notes: what was left out and what to mind, a sentence each.
    """

    dataset: str
    digest: str
    classes: tuple[str, ...]
    training_samples: int
    validation_samples: int
    judged_on: str
    majority_accuracy: float
    scores: tuple[TapScore, ...]
    similarity: TeacherSimilarity | None
    notes: tuple[str, ...]

    @property
    def best(self) -> TapScore:
        """The first in the order."""
        return self.scores[0]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Judged:
    """A score, with what is needed to compare it with others.

    Attributes:
        right: bool (m,), which validation samples the probe got right.
        features: float32 (k, C), of the samples that CKA is computed of.
    """

    score: TapScore
    right: np.ndarray
    features: torch.Tensor

    @property
    def merit(self) -> tuple[float, float]:
        return self.score.probe_accuracy, self.score.logme


def rank(
    config: RankConfig | None = None, *, on_progress: Progress = ignore, **options: Any
) -> Ranking:
    """Judge every tap of every cached teacher of a dataset.

    Args:
        config: all options at once; or give them by name, as in `rank(dataset="isic")`. See
            `RankConfig`.
        on_progress: called with (taps done, taps in all, teacher and tap).

    Raises:
        RdcacheError: see `find_candidates` and `choose_samples`, and `Store.read`.
    """
    config = config_of_call(RankConfig, config, options)
    candidates, notes = find_candidates(config)
    first = candidates[0].store
    classes = classes_of(first)
    dataset = first.manifest["dataset"]
    samples = choose_samples([candidate.store for candidate in candidates], config.max_samples)
    judged: list[_Judged] = []
    best: dict[str, _Judged] = {}  # of each teacher; only their features are kept
    total = sum(len(candidate.taps) for candidate in candidates)
    for candidate, tap in _each_tap(candidates):
        on_progress(len(judged), total, f"{candidate.teacher} {tap}")
        it = _judge(candidate, tap, samples, len(classes))
        if candidate.teacher not in best or it.merit > best[candidate.teacher].merit:
            best[candidate.teacher] = it
        judged.append(replace(it, features=it.features[:0]))
    on_progress(total, total, "")
    order = sorted(judged, key=lambda it: it.merit, reverse=True)
    return Ranking(
        dataset=dataset["name"],
        digest=dataset["digest"],
        classes=classes,
        training_samples=len(samples.training),
        validation_samples=len(samples.validation),
        judged_on=samples.judged_on,
        majority_accuracy=_majority_accuracy(first, samples),
        scores=tuple(_compared_with(order[0], it) for it in order),
        similarity=_similarity(sorted(best.values(), key=lambda it: it.merit, reverse=True)),
        notes=(
            *notes,
            *samples.notes,
            *leak_notes(first),
            *overlap_notes(candidates, dataset["name"]),
        ),
    )


def _each_tap(candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, str]]:
    for candidate in candidates:
        for tap in candidate.taps:
            yield candidate, tap


def _judge(candidate: Candidate, tap: str, samples: ComparedSamples, classes: int) -> _Judged:
    """Read a tap once and judge it in every way."""
    store = candidate.store
    features = pooled_features(store, tap, samples.training)
    held_out = pooled_features(store, tap, samples.validation)
    labels = torch.from_numpy(store.labels[samples.training])
    truth = torch.from_numpy(store.labels[samples.validation])
    # Chosen on `held_out`, the penalty would follow the confidence that these samples punish, and
    # their accuracy would no longer be that of samples never looked at.
    groups = store.groups[samples.training]
    probe = fit_linear_probe(features, labels, classes, groups=groups)
    right = (probe.logits(held_out).argmax(dim=1) == truth).numpy()
    neighbours = knn_scores(features, labels, held_out, classes).argmax(dim=1)
    accuracy = float(right.mean())
    score = TapScore(
        teacher=candidate.teacher,
        tap=tap,
        store=str(store.location),
        channels=features.shape[1],
        probe_accuracy=accuracy,
        standard_error=float(np.sqrt(accuracy * (1 - accuracy) / len(right))),
        probe_balanced_accuracy=_mean_recall(right, truth.numpy()),
        l2=probe.l2,
        knn_accuracy=float((neighbours == truth).double().mean()),
        logme=logme(features, labels, classes),
    )
    count = min(CKA_SAMPLES, len(features))
    spaced = torch.arange(count) * len(features) // count
    return _Judged(score, right, features[spaced])


def _mean_recall(right: np.ndarray, truth: np.ndarray) -> float:
    return float(np.mean([right[truth == label].mean() for label in np.unique(truth)]))


def _majority_accuracy(store: Store, samples: ComparedSamples) -> float:
    most = np.bincount(store.labels[samples.training]).argmax()
    return float((store.labels[samples.validation] == most).mean())


def _compared_with(first: _Judged, other: _Judged) -> TapScore:
    """The score with the exact McNemar test: of the samples that one of the two probes alone got
    right, could either have had half?
    """
    ahead = int((first.right & ~other.right).sum())
    behind = int((~first.right & other.right).sum())
    if not ahead + behind:
        return other.score
    p_value = float(stats.binomtest(ahead, ahead + behind).pvalue)
    return replace(other.score, p_value=p_value)


def _similarity(best: Sequence[_Judged]) -> TeacherSimilarity | None:
    """CKA between every two teachers."""
    samples = len(best[0].features)
    if len(best) < 2 or samples < MIN_SAMPLES:
        return None
    table = np.eye(len(best))
    for row, one in enumerate(best):
        for column, other in enumerate(best[:row]):
            value = float(cka(one.features.double(), other.features.double()))
            table[row, column] = table[column, row] = value
    return TeacherSimilarity(
        taps={it.score.teacher: it.score.tap for it in best},
        cka=tuple(tuple(map(float, row)) for row in table),
        samples=samples,
    )
