"""The paper's numbers are shares of its test images."""

from __future__ import annotations

import pytest

from rdcache.report import published

CELLS = [
    *((dataset, value) for dataset, values in published.PLAIN.items() for value in values),
    *((key[0], value) for key, values in published.REPROGRAMMED.items() for value in values),
    *((key[0], value) for key, value in published.OTHERS.items()),
    *((key[0], value) for key, value in published.ABLATION.items()),
    *((dataset, value) for dataset, values in published.FINE_TUNED.items() for value in values),
]


@pytest.mark.parametrize(("dataset", "accuracy"), CELLS)
def test_each_accuracy_is_a_whole_number_of_correct_images(dataset: str, accuracy: float) -> None:
    images = published.TEST_IMAGES[dataset]
    correct = round(accuracy / 100 * images)
    assert abs(100 * correct / images - accuracy) < 0.0051


def test_mean_gains_follow_from_the_main_table_where_it_is_whole() -> None:
    for teacher in ("rad-densenet", "lvm-med"):
        gains = []
        for student in published.STUDENTS:
            ours = published.published_accuracy("btc", teacher, student, "rd")
            plain = published.published_accuracy("btc", teacher, student, "none")
            assert ours is not None
            assert plain is not None
            gains.append(ours - plain)
        there = published.published_gain("btc", teacher, "rd")
        assert sum(gains) / 3 == pytest.approx(there, abs=0.006)
    assert published.published_gain("btc", "pmc-clip", "rd") is None, "it does not follow"


def test_other_teachers_and_students_have_no_number() -> None:
    assert published.published_accuracy("busi", "efficientnet-lite2", "resnet18", "none") is None
    assert published.published_accuracy("busi", "lvm-med", "shufflenet-x0.5", "rd") is None
    assert published.published_accuracy("busi", "lvm-med", "resnet18", "crd") is None
