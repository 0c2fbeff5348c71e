"""Tables of runs of several tasks: each is compared by its own metric."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from rdcache.distillation import load_run
from rdcache.errors import UnknownNameError, UsageError
from rdcache.report import FORMS, Row, compare, image_test, plain_table, require_names, row_of
from rdcache.report.learning_curve import headline_of
from rdcache.report.predictions import values_by_uid


def row(dataset: str, headline: str, method: str, *values: float) -> Row:
    return Row(dataset, "t", "s", method, {headline: dict(enumerate(values))}, headline=headline)


def several() -> list[Row]:
    return [
        row("busi", "accuracy", "none", 0.7, 0.72),
        row("busi", "accuracy", "drd", 0.8, 0.82),
        row("busi-seg", "dice", "none", 0.5, 0.52),
        row("busi-seg", "dice", "drd", 0.7, 0.74),
        row("chest", "auroc", "none", 0.6, 0.62),
    ]


def finished(folder: Path, metric: str | None, value: float) -> Path:
    """A run's folder with a headline, or one from before there were any."""
    folder.mkdir(parents=True)
    config = {"config": {"student": "s", "method": "none"}, "store": {"fingerprint": "f"}}
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "seed": 0}))
    result = {
        "schema": 1,
        "seed": 0,
        "student": "s",
        "method": "none",
        "dataset": {"name": "busi-seg", "classes": ["background", "lesion"]},
        "teacher": {"name": "t"},
        "training": {"samples": 20},
        "test": {"n": 4, metric or "accuracy": value},
    }
    if metric:
        result |= {"metric": metric, "task": "segmentation", "dimensions": 2}
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_each_task_has_its_own_columns_and_gains() -> None:
    comparisons = compare(several())
    assert [it.metric for it in comparisons] == ["accuracy", "accuracy", "dice", "dice", "auroc"]
    assert comparisons[3].gain is not None
    assert comparisons[3].gain.mean == pytest.approx(0.21)
    table = plain_table("x", comparisons)
    names = [heading.name for heading in table.headings]
    assert {"accuracy", "dice", "iou", "auroc"} <= set(names)
    at = names.index("dice")
    assert [line[at].text for line in table.lines] == ["–", "–", "51.0 ± 1.4", "72.0 ± 2.8", "–"]
    assert "accuracy or dice or auroc gain over none" in names


@pytest.mark.parametrize("form", ["methods", "gains", "peft", "ablation"])
def test_a_form_names_the_metric_of_a_dataset_where_there_are_several(form: str) -> None:
    table = FORMS[form]("x", compare(several()), "none", False)
    shown = [heading.joined for heading in table.headings]
    shown += [entry.text for line in table.lines for entry in line]
    assert any("busi-seg, dice" in text for text in shown)
    assert not any(entry.text == "average" for line in table.lines for entry in line)
    alone = FORMS[form]("x", compare(several()[2:4]), "none", False)
    assert not any("busi-seg, dice" in heading.joined for heading in alone.headings)


@pytest.mark.parametrize("form", ["methods", "gains"])
def test_the_papers_numbers_stand_beside_accuracies_where_there_are_other_tasks(form: str) -> None:
    rows = [
        Row(dataset, "lvm-med", student, method, {headline: {0: value}}, headline=headline)
        for dataset, headline in (("isic", "accuracy"), ("busi-seg", "dice"))
        for student in ("resnet18", "shufflenet", "mobilenet")
        for method, value in (("none", 0.5), ("rd", 0.6))
    ]
    table = FORMS[form]("x", compare(rows), "none", True)
    assert any("paper" in heading.joined for heading in table.headings)
    assert not any("busi-seg" in h.joined and "paper" in h.joined for h in table.headings)


def test_distances_stand_in_their_own_unit() -> None:
    values = {"dice": {0: 0.5}, "hd95": {0: 3.25}}
    segmented = Row("kits", "t", "s", "none", values, headline="dice", distance_unit="mm")
    table = plain_table("x", compare([segmented]))
    headings = [heading.joined for heading in table.headings]
    at = headings.index("hd95 (mm)")
    assert table.lines[0][at].text == "3.25"


def test_a_metric_of_one_task_is_not_asked_of_all() -> None:
    require_names(several(), None, "none")
    with pytest.raises(UnknownNameError, match="nsd"):
        require_names(several(), "nsd", "none")


def test_rows_take_their_headline_from_their_runs_and_old_runs_are_of_accuracy(
    tmp_path: Path,
) -> None:
    new = load_run(finished(tmp_path / "new", "dice", 0.6))
    old = load_run(finished(tmp_path / "old", None, 0.8))
    assert (new.metric, new.task) == ("dice", ("segmentation", 2))
    assert (old.metric, old.task) == ("accuracy", ("multiclass", 2))
    place = ("busi-seg", "t", "s")
    assert row_of(place, "none", [new]).values["dice"] == {0: 0.6}
    assert row_of(place, "none", [new]).values["dice_without_leaks"] == {0: 0.6}
    assert row_of(place, "none", [old]).headline == "accuracy"
    assert headline_of([new]) == "dice"
    with pytest.raises(UsageError, match="several tasks"):
        headline_of([new, old])


def test_predictions_of_each_task_are_worth_a_number_an_image(tmp_path: Path) -> None:
    masks, findings = tmp_path / "masks.csv", tmp_path / "findings.csv"
    masks.write_text("uid,dice,dice_lesion\nu0,0.25,0.25\nu1,1,1\n")
    findings.write_text("uid,label_a,p_a,label_b,p_b\nu0,1,0.9,0,0.7\nu1,0,0.1,0,0.2\n")
    assert values_by_uid(masks) == {"u0": 0.25, "u1": 1.0}
    assert values_by_uid(findings) == {"u0": 0.5, "u1": 1.0}


def test_values_of_images_are_compared_by_a_paired_bootstrap() -> None:
    random = np.random.default_rng(0)
    base = {seed: random.uniform(0, 1, 400) for seed in range(2)}
    better = {seed: values + random.normal(0.05, 0.2, 400) for seed, values in base.items()}
    test = image_test(better, base)
    assert test is not None
    by_image = np.mean([better[seed] - base[seed] for seed in range(2)], axis=0)
    error = by_image.std() / math.sqrt(400)
    assert test.mean == pytest.approx(by_image.mean())
    assert test.low == pytest.approx(by_image.mean() - 1.96 * error, abs=0.15 * error)
    assert test.p == pytest.approx(math.erfc(by_image.mean() / error / math.sqrt(2)), abs=5e-3)
    assert test.mcnemar == {}
    same = image_test(base, base)
    assert same is not None
    assert same.p == 1.0
