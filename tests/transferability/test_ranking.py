"""Rankings of invented teachers whose features say more or less about the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import rdcache
from rdcache.errors import StoreFormatError, StoreNotFoundError, UnknownNameError, UsageError
from rdcache.store import Store, TapSpec, newest_store
from rdcache.store.transfer import Part, copy_store
from rdcache.transferability import Ranking
from rdcache.transferability.compared_samples import choose_samples

from .conftest import CLASSES, Images, vectors


def ranked(images: Images, **options: Any) -> Ranking:
    return rdcache.rank(dataset="scans", root=images.root, **options)


def order(ranking: Ranking) -> list[tuple[str, str]]:
    return [(score.teacher, score.tap) for score in ranking.scores]


@pytest.fixture
def three(images: Images) -> Images:
    """Two taps of one teacher, strong and weak, one of another in between, and one of noise."""
    images.store("good", {"s4": vectors(images.labels, 6.0), "s1": vectors(images.labels, 1.0, 1)})
    images.store("fair", {"pooled": vectors(images.labels, 3.0, 2)})
    images.store("noise", {"pooled": vectors(images.labels, 0.0, 3)})
    return images


def test_taps_are_ordered_by_what_they_say_about_the_labels(three: Images) -> None:
    seen: list[tuple[int, int, str]] = []
    ranking = ranked(three, on_progress=lambda *step: seen.append(step))
    assert order(ranking) == [
        ("good", "s4"),
        ("fair", "pooled"),
        ("good", "s1"),
        ("noise", "pooled"),
    ]
    for measure in ("probe_accuracy", "knn_accuracy", "logme", "probe_balanced_accuracy"):
        values = [getattr(score, measure) for score in ranking.scores]
        assert values == sorted(values, reverse=True), measure
    assert ranking.best.probe_accuracy > 0.95
    assert ranking.scores[-1].probe_accuracy < 0.6
    assert [score.p_value < 0.05 for score in ranking.scores] == [False, False, True, True]
    assert (ranking.training_samples, ranking.validation_samples) == (90, 45)
    assert ranking.judged_on == "the validation split"
    assert ranking.majority_accuracy == pytest.approx(1 / 3)
    assert seen[0] == (0, 4, "fair pooled")
    assert seen[-1][:2] == (4, 4)
    assert ranking.notes == ()


def test_teachers_that_see_the_same_are_alike(images: Images) -> None:
    one = vectors(images.labels, 3.0)
    turned = one @ np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    images.store("one", {"pooled": one, "other": vectors(images.labels, 0.0, 4)})
    images.store("turned", {"pooled": turned})
    images.store("noise", {"pooled": vectors(images.labels, 0.0, 5)})
    similarity = ranked(images).similarity
    assert similarity is not None
    assert set(similarity.taps.items()) == {
        ("one", "pooled"),
        ("turned", "pooled"),
        ("noise", "pooled"),
    }
    table = np.array(similarity.cka)
    place = {teacher: number for number, teacher in enumerate(similarity.taps)}
    assert np.array_equal(table, table.T)
    assert table[place["one"], place["turned"]] == pytest.approx(1, abs=1e-4)
    assert abs(table[place["one"], place["noise"]]) < 0.1
    assert similarity.samples == 90


def test_neither_features_nor_labels_of_the_test_split_are_looked_at(
    images: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = vectors(images.labels, 2.0)
    images.store("one", {"pooled": features})
    test = images.splits == "test"
    poisoned = images.but(root=images.root / "poisoned", labels=np.where(test, 0, images.labels))
    poisoned.store(
        "one", {"pooled": np.where(test[:, None], 1e4 * images.labels[:, None], features)}
    )

    read: set[int] = set()
    honest = Store.read

    def watched(store: Store, samples: Sequence[int], *rest: Any, **more: Any) -> Any:
        read.update(map(int, samples))
        return honest(store, samples, *rest, **more)

    monkeypatch.setattr(Store, "read", watched)
    (clean,), (other,) = ranked(images).scores, ranked(poisoned).scores
    assert {**vars(clean), "store": ""} == {**vars(other), "store": ""}
    assert read == set(np.flatnonzero(~test).tolist())


def test_nothing_is_learnt_or_chosen_by_the_images_that_judge(images: Images) -> None:
    features = {"pooled": vectors(images.labels, 2.0)}
    images.store("one", features)
    judges = images.splits == "val"
    wrong = images.but(
        root=images.root / "wrong", labels=np.where(judges, (images.labels + 1) % 3, images.labels)
    )
    wrong.store("one", features)
    right, misjudged = ranked(images).best, ranked(wrong).best
    assert (right.l2, right.logme) == (misjudged.l2, misjudged.logme)
    assert right.probe_accuracy > 0.6 > 0.3 > misjudged.probe_accuracy


def test_labels_are_those_of_the_samples_that_were_read(images: Images) -> None:
    """Rows without features are left out of features and labels alike, for every teacher."""
    images.store("one", {"pooled": vectors(images.labels, 8.0)}, lacking=(0, 7, 50, 95))
    images.store("two", {"pooled": vectors(images.labels, 8.0, 1)}, lacking=(3,))
    ranking = ranked(images)
    assert all(score.probe_accuracy == score.knn_accuracy == 1 for score in ranking.scores)
    assert (ranking.training_samples, ranking.validation_samples) == (86, 44)
    assert ranking.notes == (
        "left out of the train split, 2 of 2 teachers having no features of some: 4",
        "left out of the val split, 1 of 2 teachers having no features of some: 1",
    )


def test_of_large_splits_some_are_looked_at_classes_in_proportion(images: Images) -> None:
    rare = np.where(np.arange(165) % 10 == 0, 1, 0)
    large = images.but(labels=rare)
    store = large.store("one", {"pooled": vectors(rare, 3.0)})
    samples = choose_samples([store], 40)
    assert (len(samples.training), len(samples.validation)) == (40, 40)
    assert np.bincount(rare[samples.training]).tolist() == [36, 4]
    assert set(store.splits[samples.training]) == {"train"}
    assert samples.notes[0] == "40 of 90 training images are looked at (--max-samples)"
    again = choose_samples([store], 40)
    assert np.array_equal(samples.training, again.training), "nothing is drawn"


def test_the_penalty_is_not_chosen_by_images_of_patients_who_were_learnt_from(
    images: Images,
) -> None:
    random = np.random.default_rng(0)
    patients = np.arange(165) % 33  # of each, images of one label in every split
    labels = random.integers(0, 3, 33)[patients]
    features = random.normal(0, 1, (33, 40))[patients] + random.normal(0, 0.01, (165, 40))
    strengths = []
    for number, groups in enumerate((np.full(165, -1), patients)):
        told = images.but(root=images.root / str(number), labels=labels, groups=groups)
        told.store("one", {"pooled": features})
        strengths.append(ranked(told).best.l2)
    assert strengths[0] < strengths[1]


def test_without_a_validation_split_whole_groups_of_training_images_are_held_out(
    images: Images,
) -> None:
    groups = np.arange(165) // 3 * 3  # three of a group, which are of three classes
    alone = images.but(sizes={"train": 135, "val": 0, "test": 30}, groups=groups)
    store = alone.store("one", {"pooled": vectors(alone.labels, 8.0)})
    samples = choose_samples([store], 1000)
    assert len(samples.validation) == 27
    assert set(samples.training) | set(samples.validation) == set(range(135))
    assert not set(groups[samples.training]) & set(groups[samples.validation])
    ranking = ranked(alone)
    assert ranking.judged_on == "training images held out"
    assert "no validation split" in ranking.notes[0]
    assert ranking.best.probe_accuracy == 1


def test_stores_of_other_splits_older_and_unfinished_ones_are_left_out_and_named(
    images: Images,
) -> None:
    features = {"pooled": vectors(images.labels, 3.0)}
    images.but(digest="d0").store("one", features, version="other split")
    images.store("two", features, version="old")
    images.store("two", {"pooled": vectors(images.labels, 0.0)}, version="new")
    images.store("three", features)
    images.store("four", features, commit=False)
    ranking = ranked(images)
    assert order(ranking) == [("three", "pooled"), ("two", "pooled")]
    assert [note.partition(":")[0] for note in ranking.notes] == [
        "left out, incomplete",
        "left out, of other images, labels or splits than the newest store",
        "left out, older than another store of their teacher",
    ]
    assert "one/" in ranking.notes[1]


def test_a_part_copied_without_test_images_is_as_good_as_the_whole(images: Images) -> None:
    whole = images.store("one", {"pooled": vectors(images.labels, 3.0)})
    images.store("two", {"pooled": vectors(images.labels, 1.0, 1)})
    with_test = ranked(images)
    parts = images.but(root=images.root / "parts")
    for teacher in ("one", "two"):
        store = newest_store(images.root, "scans", teacher)
        copy_store(store, parts.root, Part(splits=("train", "val")))
    copy_store(whole.location, parts.root, Part(splits=("test",)))
    without = ranked(parts)
    assert [vars(score) | {"store": ""} for score in without.scores] == [
        vars(score) | {"store": ""} for score in with_test.scores
    ]
    assert without.notes[0].startswith("left out, copied without train or val: one/")


def test_teachers_and_taps_are_chosen_by_name(three: Images) -> None:
    assert order(ranked(three, teachers=("good",))) == [("good", "s4"), ("good", "s1")]
    some = ranked(three, taps=("s1",))
    assert order(some) == [("good", "s1")]
    assert some.similarity is None
    assert "without a tap" in some.notes[0]
    with pytest.raises(UnknownNameError, match="s9"):
        ranked(three, taps=("s9",))
    with pytest.raises(UnknownNameError, match="goood"):
        ranked(three, teachers=("goood",))


def test_without_a_store_the_next_step_is_told(images: Images) -> None:
    with pytest.raises(StoreNotFoundError, match="rdcache extract --teacher NAME --dataset scans"):
        ranked(images)
    images.store("one", {"pooled": vectors(images.labels, 1.0)}, commit=False)
    with pytest.raises(StoreNotFoundError, match="incomplete     one/"):
        ranked(images)
    with pytest.raises(UnknownNameError, match="did you mean   scans"):
        rdcache.rank(dataset="scan", root=images.root)


def test_stores_that_contradict_each_other_or_themselves_are_refused(images: Images) -> None:
    features = {"pooled": vectors(images.labels, 1.0)}
    images.store("one", features)
    images.but(labels=images.labels[::-1].copy()).store("two", features)
    with pytest.raises(StoreFormatError, match="different samples"):
        ranked(images)
    images.store("three", features, dataset={"name": "scans"})
    with pytest.raises(StoreFormatError, match="does not say what it was made of"):
        ranked(images)


def test_too_few_images_are_no_ranking(images: Images) -> None:
    nothing = {"labels": np.zeros(32, np.int64), "groups": np.full(32, -1)}
    few = images.but(sizes={"train": 1, "val": 1, "test": 30}, **nothing)
    few.store("one", {"pooled": np.random.default_rng(0).normal(0, 1, (32, 3))})
    with pytest.raises(UsageError, match="too few images"):
        ranked(few)


def test_leaks_of_the_dataset_are_told(images: Images) -> None:
    leaks = {"leaked_test_uids": ["a", "b"], "across_splits": 3, "straddling_groups": 0}
    images.but(leaks=leaks).store("one", {"pooled": vectors(images.labels, 1.0)})
    leaked, crossing = ranked(images).notes
    assert leaked.startswith("2 test images also occur in train or val")
    assert crossing.startswith("3 pairs of duplicates lie in more than one split")


def test_teachers_that_were_trained_on_the_images_are_named(images: Images) -> None:
    features = {"pooled": vectors(images.labels, 1.0)}
    dataset = {"name": "isic", "digest": "d1", "classes": list(CLASSES)}
    images.store("pmc-clip", features, dataset=dataset)
    images.store("lvm-med", features, dataset=dataset)
    images.store("lvm-med-resnet50", features, dataset=dataset, weights="random")
    (note,) = rdcache.rank(dataset="isic", root=images.root).notes
    assert note.startswith("trained on images of isic")
    assert note.endswith(": lvm-med")


def test_a_tap_is_read_in_its_stored_dtype_and_judged_the_same(images: Images) -> None:
    maps = np.tile(vectors(images.labels, 3.0)[:, :, None, None], (2, 2))
    images.store(
        "one",
        {
            TapSpec("exact", "map2d", (6, 2, 2), "float32"): maps,
            TapSpec("steps", "map2d", (6, 2, 2), "int8"): maps,
            TapSpec("half", "map2d", (6, 2, 2), "bfloat16"): maps,
        },
    )
    ranking = ranked(images)
    assert {score.channels for score in ranking.scores} == {6}
    exact = next(score for score in ranking.scores if score.tap == "exact")
    for score in ranking.scores:
        assert score.logme == pytest.approx(exact.logme, abs=0.01)


def test_a_tap_that_is_right_where_the_first_is_right_cannot_be_told_from_it(
    images: Images,
) -> None:
    features = vectors(images.labels, 2.0)
    images.store("one", {"pooled": features, "same": features})
    assert [score.p_value for score in ranked(images).scores] == [1.0, 1.0]
