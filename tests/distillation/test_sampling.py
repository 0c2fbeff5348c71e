"""Which samples make a batch and which of their views is used, epoch by epoch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdcache.distillation.config import DistillConfig
from rdcache.distillation.randomness import counted_generator
from rdcache.distillation.residency import choose_shuffle
from rdcache.distillation.sampling import TrainingSamples, in_groups_of_shards
from rdcache.distillation.session import _taps_read
from rdcache.distillation.view_orders import view_orders
from rdcache.errors import UsageError
from rdcache.store import TapSpec

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


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    uids=st.lists(st.text("0123456789abcdef", min_size=32, max_size=32), max_size=40),
    count=st.integers(1, 40),
)
def test_view_orders_are_those_of_a_generator_for_each_sample(
    seed: int, uids: list[str], count: int
) -> None:
    orders = view_orders(seed, uids, count)
    assert orders.shape == (len(uids), count)
    for uid, order in zip(uids, orders.tolist(), strict=True):
        generator = counted_generator("views", seed, uid)
        assert order == generator.permutation(count).tolist()


def test_view_orders_hold_where_many_draws_are_rejected() -> None:
    uids = [f"{number:032x}" for number in range(20_000)]
    orders = view_orders(3, uids, 5)
    own = [counted_generator("views", 3, uid).permutation(5) for uid in uids]
    assert np.array_equal(orders, own)


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    group=st.integers(1, 15),
    seed=st.integers(0, 2**31),
)
def test_a_shuffle_by_shards_has_every_sample_once_and_one_group_after_the_other(
    counts: list[int], group: int, seed: int
) -> None:
    shards = np.repeat(np.arange(len(counts)), counts)
    order = in_groups_of_shards(shards, group, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(shards)))
    assert any(in_blocks(shards[np.roll(order, -shift)], group) for shift in range(len(order)))


def in_blocks(shards: np.ndarray, group: int) -> bool:
    """Whether samples, given by their shards, are a block of all samples of so many shards, then
    another, and so on; the last may be of fewer.
    """
    _, first, which = np.unique(shards, return_index=True, return_inverse=True)
    turn = np.argsort(np.argsort(first))  # each shard's, by where it occurs first
    return bool((np.diff(turn[which] // group) >= 0).all())


def test_a_full_shuffle_is_not_by_shards() -> None:
    shards = np.repeat(np.arange(12), 9)
    full = np.random.default_rng(0).permutation(shards)
    assert not any(in_blocks(np.roll(full, -shift), 4) for shift in range(len(full)))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), batch_size=st.integers(1, 41), epoch=st.integers(0, 1000))
def test_an_epoch_by_shards_is_full_batches_of_distinct_samples_in_the_very_same_views(
    tiny: Tiny, seed: int, batch_size: int, epoch: int
) -> None:
    by_shards = TrainingSamples(tiny.store, seed, shuffle="shards")
    batches = by_shards.batches(batch_size, epoch, "student", seed)
    samples = np.concatenate([picks.samples for picks in batches])
    assert all(len(picks.samples) == batch_size for picks in batches)
    assert len(set(samples.tolist())) == len(samples) == len(by_shards) // batch_size * batch_size
    full = TrainingSamples(tiny.store, seed)
    views = {
        int(sample): int(view)
        for picks in full.batches(1, epoch, "student", seed)
        for sample, view in zip(picks.samples, picks.views, strict=True)
    }
    assert all(
        views[int(sample)] == view
        for picks in batches
        for sample, view in zip(picks.samples, picks.views, strict=True)
    )


def test_by_shards_every_position_is_as_likely_as_any_other() -> None:
    shards = np.repeat(np.arange(7), [4, 4, 4, 4, 4, 4, 1])  # the last one is not full
    trials = 20_000
    counts = np.zeros((len(shards), len(shards)))
    for trial in range(trials):
        order = in_groups_of_shards(shards, 2, counted_generator("test", trial))
        counts[order, np.arange(len(shards))] += 1
    expected = trials / len(shards)
    statistics = ((counts - expected) ** 2 / expected).sum(axis=1)  # χ² of 24 degrees, each sample
    assert statistics.mean() == pytest.approx(24, rel=0.2)
    assert statistics.max() < 60  # 1 in 20,000 for each sample


def test_by_shards_pairs_of_a_shard_meet_more_often_by_the_factor_that_is_stated() -> None:
    shard_samples, group, batch_size, count = 8, 8, 4, 512
    shards = np.arange(count) // shard_samples
    met, trials = 0, 1500
    for trial in range(trials):
        order = in_groups_of_shards(shards, group, counted_generator("test", trial))
        batch_of = np.empty(count, np.int64)
        batch_of[order] = np.arange(count) // batch_size
        met += int((batch_of[0::8] == batch_of[1::8]).sum())
    often = met / trials / (count / shard_samples)
    in_full_shuffle = (batch_size - 1) / (count - 1)
    assert often / in_full_shuffle == pytest.approx(count / (group * shard_samples), rel=0.08)


def test_batches_of_a_full_shuffle_are_what_they_always_were(tiny: Tiny) -> None:
    training = TrainingSamples(tiny.store, 3)
    first, *_ = training.batches(8, 2, "student", 3)
    order = counted_generator("batches", "student", 3, 2).permutation(len(training))[:8]
    assert first.samples.tolist() == training.rows[order].tolist()


def test_which_order_is_chosen_is_part_of_a_run_only_where_it_is_by_shards(tiny: Tiny) -> None:
    plain = DistillConfig(device="cpu")
    assert choose_shuffle(tiny.store, ["s4"], 3, "auto") == "full"
    assert choose_shuffle(tiny.store, [], 3, "auto") == "full"
    by_shards = DistillConfig(device="cpu", shuffle="shards")
    assert choose_shuffle(tiny.store, ["s4"], 3, "shards") == "shards"
    full = DistillConfig(device="cpu", shuffle="full")
    assert plain.digest("store") == full.digest("store") != by_shards.digest("store")


def test_what_does_not_fit_into_memory_is_read_by_shards(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rdcache.distillation.residency.available_memory", lambda: 1000)
    assert choose_shuffle(tiny.store, ["s4"], 3, "auto") == "full", "free again in a moment"
    monkeypatch.setattr("rdcache.distillation.residency.memory_limit", lambda: 1000)
    assert choose_shuffle(tiny.store, ["s4"], 3, "auto") == "shards"
    assert choose_shuffle(tiny.store, ["s4"], 3, "full") == "full"


def test_the_order_is_chosen_by_the_taps_that_are_read(tiny: Tiny, tmp_path: Path) -> None:
    taps = (TapSpec("s3", "map2d", (4, 6, 6)), TapSpec("s4", "map2d", (8, 3, 3)))
    store = write_store(tmp_path / "store", tiny.dataset, taps=taps)
    read = {
        method: _taps_read(DistillConfig(method=method).resolved(), store)
        for method in ("rd", "rd-paper", "none")
    }
    assert read == {"rd": ["s3"], "rd-paper": ["s4"], "none": []}
    assert _taps_read(DistillConfig(method="rd").resolved(), tiny.store) == ["s4"]
    named = DistillConfig(method="rd", method_options={"tap": "tokens"}).resolved()
    assert _taps_read(named, tiny.store) == ["tokens"]
