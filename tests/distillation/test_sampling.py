"""Which samples make a batch and which of their views is used, epoch by epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdcache.distillation.sampling import TrainingSamples
from rdcache.errors import UsageError

from .conftest import VIEWS, Tiny, write_store


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), batch_size=st.integers(1, 41), epoch=st.integers(0, 1000))
def test_an_epoch_is_full_batches_of_distinct_training_samples(
    tiny: Tiny, seed: int, batch_size: int, epoch: int
) -> None:
    training = TrainingSamples(tiny.store, seed)
    batches = training.batches(batch_size, epoch, "student", seed)
    samples = np.concatenate([picks.samples for picks in batches])
    assert all(len(picks.samples) == batch_size for picks in batches)
    assert len(set(samples.tolist())) == len(samples) == len(training) // batch_size * batch_size
    assert set(tiny.store.splits[samples]) == {"train"}


def test_in_as_many_epochs_as_there_are_views_each_sample_shows_each_view_once(tiny: Tiny) -> None:
    training = TrainingSamples(tiny.store, seed=0)
    shown: dict[int, list[int]] = {}
    for epoch in range(VIEWS):
        for picks in training.batches(1, epoch):
            shown.setdefault(int(picks.samples[0]), []).append(int(picks.views[0]))
    assert all(sorted(views) == list(range(VIEWS)) for views in shown.values())
    assert len({tuple(views) for views in shown.values()}) > 1, "all samples go in step"


def test_epochs_and_seeds_differ_and_repeat_exactly(tiny: Tiny) -> None:
    def order(seed: int, epoch: int) -> list[int]:
        training = TrainingSamples(tiny.store, seed)
        return [int(s) for p in training.batches(8, epoch, seed) for s in p.samples]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


def test_views_without_tensors_are_passed_over(tiny: Tiny, tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", tiny.dataset, not_finite=((0, 0), (0, 2), (1, 1)))
    training = TrainingSamples(store, seed=0)
    views: dict[int, set[int]] = {0: set(), 1: set()}
    for epoch in range(6):
        for picks in training.batches(1, epoch):
            if picks.samples[0] in views:
                views[int(picks.samples[0])].add(int(picks.views[0]))
    assert views == {0: {1}, 1: {0, 2}}
    assert (training.left_out, training.missing_views) == (0, 3)


def test_training_can_be_kept_to_the_clean_view(tiny: Tiny) -> None:
    training = TrainingSamples(tiny.store, seed=0, views=1)
    assert {int(v) for e in range(3) for p in training.batches(8, e) for v in p.views} == {0}


def test_a_batch_larger_than_the_training_set_is_refused(tiny: Tiny) -> None:
    training = TrainingSamples(tiny.store, seed=0)
    with pytest.raises(UsageError, match="larger than the training set"):
        training.batches(len(training) + 1, 0)
