"""Which training images a run with `train_fraction` sees, and that it sees no others."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rdcache.distillation import DistillConfig, distill
from rdcache.distillation.preparing import Job, create_trainers
from rdcache.distillation.sampling import TrainingSamples
from rdcache.distillation.session import _company
from rdcache.distillation.shared_sources import Sources
from rdcache.distillation.statistics import channel_statistics
from rdcache.distillation.subset import Subset, drawn
from rdcache.errors import UsageError
from rdcache.models import choose_device
from rdcache.store import Store
from rdcache.transferability import fit_linear_probe, pooled_features

from .conftest import Tiny

Options = Callable[..., dict[str, Any]]
FRACTIONS = st.floats(0.001, 1.0)


def uids_of(count: int) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (count, 16), np.uint8)


@st.composite
def samples(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Uids, labels and groups of a training set, some groups of several classes."""
    count = draw(st.integers(1, 60))
    labels = draw(st.lists(st.integers(0, 3), min_size=count, max_size=count))
    groups = draw(st.lists(st.integers(-1, 12), min_size=count, max_size=count))
    return uids_of(count), np.array(labels), np.array(groups)


@settings(max_examples=150, deadline=None)
@given(table=samples(), one=FRACTIONS, other=FRACTIONS, seed=st.integers(0, 2**31))
def test_parts_are_nested_have_every_class_and_split_no_group(
    table: tuple[np.ndarray, np.ndarray, np.ndarray], one: float, other: float, seed: int
) -> None:
    _, labels, groups = table
    smaller, larger = (drawn(*table, fraction, seed) for fraction in sorted((one, other)))
    assert (larger | ~smaller).all()
    assert set(labels[smaller]) == set(labels)
    for group in set(groups.tolist()) - {-1}:
        assert len(set(smaller[groups == group])) == 1
    assert drawn(*table, 1.0, seed).all()


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=200),
    fraction=FRACTIONS,
    seed=st.integers(0, 2**31),
)
def test_without_groups_each_class_is_within_one_sample_of_its_share(
    labels: list[int], fraction: float, seed: int
) -> None:
    of = np.array(labels)
    chosen = drawn(uids_of(len(of)), of, np.full(len(of), -1), fraction, seed)
    for label in set(labels):
        assert abs(chosen[of == label].sum() - fraction * (of == label).sum()) < 1


@settings(max_examples=50, deadline=None)
@given(table=samples(), fraction=FRACTIONS, shuffle=st.randoms(use_true_random=False))
def test_a_part_does_not_depend_on_the_order_of_the_samples_or_the_names_of_groups(
    table: tuple[np.ndarray, np.ndarray, np.ndarray], fraction: float, shuffle: Any
) -> None:
    uids, labels, groups = table
    order = list(range(len(labels)))
    shuffle.shuffle(order)
    renamed = np.where(groups < 0, -1, 100 - groups)
    again = drawn(uids[order], labels[order], renamed[order], fraction, 3)
    assert np.array_equal(again, drawn(uids, labels, groups, fraction, 3)[order])


def test_a_part_is_the_same_on_every_machine() -> None:
    """Of each class the samples whose hash, of seed and uid, is smallest."""
    uids, labels = uids_of(12), np.arange(12) % 2
    keys = [f"training subset/5/{uid.tobytes().hex()}".encode() for uid in uids]
    digests = [blake2b(key, digest_size=16).digest()[:8] for key in keys]
    order = sorted(range(12), key=lambda sample: int.from_bytes(digests[sample], "little"))
    wanted = [[sample for sample in order if labels[sample] == label][:3] for label in (0, 1)]
    chosen = drawn(uids, labels, np.full(12, -1), 0.5, 5)
    assert set(np.flatnonzero(chosen).tolist()) == {*wanted[0], *wanted[1]}


def test_seeds_choose_other_parts(tiny: Tiny) -> None:
    parts = {tuple(Subset(0.5, seed).of_training(tiny.store)) for seed in range(5)}
    assert len(parts) == 5
    assert Subset.of(1.0, 3) == Subset.of(1.0, 4)
    everything = TrainingSamples(tiny.store, 0)
    assert everything.rows.tolist() == tiny.store.samples_of("train").tolist()


def test_a_run_reads_no_other_training_images(
    tiny: Tiny, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches, channel statistics, folds, class weights: everything that learns."""
    read: set[int] = set()
    original = Store.read_stored, Store.read

    def counting(which: int) -> Any:
        def reading(store: Store, rows: Any, *rest: Any, **named: Any) -> Any:
            read.update(np.asarray(rows).tolist())
            return original[which](store, rows, *rest, **named)

        return reading

    monkeypatch.setattr(Store, "read_stored", counting(0))
    monkeypatch.setattr(Store, "read", counting(1))
    own: dict[str, Any] = {"folds": 2, "teacher_epochs": 1, "class_weights": "balanced"}
    run = distill(tiny.store, train_fraction=0.4, seed=2, resident="disk", **own, **options())
    wanted = Subset(0.4, 2).of_training(tiny.store)
    assert read & set(tiny.store.samples_of("train").tolist()) == set(wanted.tolist())
    assert run.result["training"]["samples"] == len(wanted)
    assert run.result["training"]["of"] == len(tiny.store.samples_of("train"))


def test_statistics_class_counts_and_folds_are_of_the_part(tiny: Tiny, options: Options) -> None:
    notes: list[str] = []
    sources = Sources(tiny.store, tiny.dataset, choose_device("cpu"), notes.append)
    own = {"folds": 2, "teacher_epochs": 1}
    config = DistillConfig(**options(train_fraction=0.4, class_weights="balanced"))
    jobs = [Job(config.model_copy(update={"method_options": own}).resolved(), s) for s in (0, 1)]
    for job, trainer in zip(jobs, create_trainers(sources, jobs), strict=True):
        rows = Subset(0.4, job.seed).of_training(tiny.store)
        method: Any = trainer.method
        values = tiny.store.read(rows, 0, ["s4"])["s4"].double()
        found = method.branch.reprogrammer.maps.mean.flatten().numpy()
        assert found == pytest.approx(values.mean((0, 2, 3)).numpy(), 1e-4)
        assert np.flatnonzero(method.crossfit.fold_of >= 0).tolist() == rows.tolist()
        share = np.bincount(tiny.store.labels[rows], minlength=3) / len(rows)
        assert method.task_loss.weight.numpy() == pytest.approx(1 / (3 * share), 1e-5)
    part = Subset(0.4, 0)
    whole = channel_statistics(tiny.store, "s4")
    assert not np.array_equal(whole.mean, sources.statistics("s4", part).mean)
    weight, _ = sources.probe("s4", part)
    rows, labels = part.of_training(tiny.store), torch.from_numpy(np.array(tiny.store.labels))
    val = tiny.store.samples_of("val")
    features = pooled_features(tiny.store, "s4", [*rows, *val])
    split = (features[: len(rows)], labels[rows]), (features[len(rows) :], labels[val])
    probe = fit_linear_probe(*split[0], 3, validation=split[1])
    assert torch.equal(weight, probe.weight)
    assert any("of 4" in note and "training images" in note for note in notes)


def test_runs_share_batches_only_where_they_see_the_same_images() -> None:
    def companies(*fractions: float, **options: Any) -> int:
        configs = [DistillConfig(train_fraction=it, order_seed=0, **options) for it in fractions]
        return len({_company(Job(config, seed)) for config in configs for seed in (0, 1)})

    assert companies(1.0) == 1
    assert companies(0.5) == 2
    assert companies(0.5, subset_seed=0) == 1
    assert companies(0.5, 0.9, subset_seed=0) == 2


def test_only_a_part_changes_what_a_run_is_called() -> None:
    whole = DistillConfig().resolved().digest("store")
    assert DistillConfig(train_fraction=1, subset_seed=3).resolved().digest("store") == whole
    half = DistillConfig(train_fraction=0.5).resolved().digest("store")
    other = DistillConfig(train_fraction=0.5, subset_seed=3).resolved().digest("store")
    assert len({whole, half, other}) == 3


def test_a_batch_larger_than_the_part_is_refused(tiny: Tiny, options: Options) -> None:
    with pytest.raises(UsageError, match="larger than the training set") as caught:
        distill(tiny.store, train_fraction=0.1, **options())
    assert int(caught.value.facts["training images"]) < 8
    assert caught.value.facts["next"] == (
        "--batch-size 2 or smaller, or a larger --train-fraction than 0.1"
    )
