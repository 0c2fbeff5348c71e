"""The paper's numbers are shares of its test images."""

from __future__ import annotations

import pytest

from rdcache.report import published

CELLS = [
    *((dataset, value) for dataset, values in published.PLAIN_STUDENTS.items() for value in values),
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


def test_what_is_listed_as_misprinted_is_not_there() -> None:
    accuracy, gain = published.published_accuracy, published.published_gain
    missing = [
        accuracy("busi", "lvm-med", "resnet18", "adaptformer"),
        accuracy("isic", "lvm-med", "resnet18", "adaptformer"),
        accuracy("busi", "lvm-med", "shufflenet", "vpt"),
        accuracy("busi", "lvm-med", "shufflenet", "vqt"),
        accuracy("covid", "lvm-med", "resnet18", "lpt"),
        *(
            accuracy(dataset, teacher, student, "mgd")
            for dataset in published.TEST_IMAGES
            for teacher in published.TEACHERS
            for student in published.STUDENTS
        ),
        published.published_ablation("covid", "resnet18", "rd"),
        *(gain("busi", teacher, "rd") for teacher in published.TEACHERS),
        gain("btc", "pmc-clip", "rd"),
    ]
    assert set(missing) == {None}
    assert published.PEFT_AVERAGES.keys() == {"melo", "rd"}
    assert 85.71 not in published.ABLATION.values()


def test_the_paper_has_accuracies_alone() -> None:
    assert published.published_accuracy("busi", "lvm-med", "resnet18", "rd") == 88.96
    assert published.published_accuracy("busi", "lvm-med", "resnet18", "rd", "macro_f1") is None
    assert published.published_gain("isic", "lvm-med", "rd", "auroc") is None
    assert published.published_fine_tuned("isic", "lvm-med", "auroc") is None
