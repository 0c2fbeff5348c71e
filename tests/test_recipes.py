"""Grids: variants, weights tuned on validation, side by side, and what diverges in them."""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_inputs import LargeOnBright, Pooling
from torch import nn

from rdcache.distillation import DistillConfig, Diverged, Run
from rdcache.distillation.training import Trainer
from rdcache.errors import RdcacheError, UsageError
from rdcache.recipes import Cell, Places, Recipe, Trial, load_recipe, run_recipe, shipped_recipe
from rdcache.recipes.tuning import about_few, chosen, tuned_by, tuned_options, with_factor

GRID = """
title: x
teachers: [efficientnet-lite0]
datasets: [phantom]
students: [shufflenet]
methods: [none, mine]
"""
CO_TRAINING = {"method": "rd", "options": {"beta": 0, "cka_weight": 0}}
PIPELINES = shipped_recipe("demo.yaml").parent


@pytest.fixture
def grid(script: Callable[[nn.Module], str], few: Path) -> Callable[..., Recipe]:
    """A small grid on sixteen images, with changes."""

    def build(**changes: Any) -> Recipe:
        parts: dict[str, Any] = {
            "title": "A small grid",
            "teachers": [script(Pooling(1.0))],
            "datasets": [f"folder:{few}"],
            "students": ["shufflenet-x0.5"],
            "methods": ["none", "rd"],
            "extract": {"views": "clean", "val_fraction": 0.2},
            "distill": {"epochs": 1, "image_size": 32, "batch_size": 8, "device": "cpu"},
            "per_method": {"rd": {"method_options": {"width": 16}}},
        }
        return Recipe(**{**parts, **changes})

    return build


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(out=tmp_path / "runs")


def trained(monkeypatch: pytest.MonkeyPatch) -> list[Trainer]:
    """The trainers that begin an epoch from now on."""
    seen: list[Trainer] = []
    begin = Trainer.begin_epoch

    def watched(trainer: Trainer) -> None:
        seen.append(trainer)
        begin(trainer)

    monkeypatch.setattr(Trainer, "begin_epoch", watched)
    return seen


def trial(factor: float, *values: float | None) -> Trial:
    return Trial(factor, dict(enumerate(values)))


def test_weights_are_tuned_on_validation_and_tuning_runs_are_runs_of_the_grid(
    grid: Callable[..., Recipe], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = grid(
        methods=["none", "co-training", "rd"],
        variants={"co-training": CO_TRAINING},
        seeds=[0, 1],
        tune={"factors": [0.5, 1, 2], "seeds": [0]},
        side_by_side=3,
    )
    notes: list[str] = []
    seen = trained(monkeypatch)
    none, co_training, rd = run_recipe(recipe, places, on_note=notes.append)
    assert [cell.method for cell in (none, co_training, rd)] == list(recipe.methods)
    assert none.tuned is co_training.tuned is None, "they have no weights above 0"
    assert rd.tuned is not None
    assert rd.tuned.options == ("beta", "cka_weight")
    best = max(each.mean or 0 for each in rd.tuned.trials)
    assert next(t for t in rd.tuned.trials if t.factor == rd.tuned.factor).mean == best
    assert [run.seed for cell in (none, co_training, rd) for run in cell.runs] == [0, 1] * 3
    # Three factors with seed 0, one of which is the grid's; then two methods and the other seed.
    assert len(seen) == 3 + 2 + 3
    assert any("validation images" in note for note in notes)
    for run in rd.runs:
        options = run.config["config"]["method_options"]
        assert options["beta"] == options["cka_weight"] == rd.tuned.factor
        assert options["width"] == 16
    (tested,) = [each for each in rd.tuned.trials if each.factor == rd.tuned.factor]
    assert tested.values == {0: rd.runs[0].result["val"]["accuracy"]}
    assert co_training.runs[0].config["config"]["method_options"]["width"] == 16
    assert {run.result["side_by_side"] for cell in (none, rd) for run in cell.runs} <= {1, 2, 3}

    seen.clear()
    again = list(run_recipe(recipe, places))
    assert not seen, "what is finished is not trained again"
    assert [cell.tuned for cell in again] == [None, None, rd.tuned]


def test_a_run_that_diverges_is_reported_in_its_cell_and_the_others_go_on(
    grid: Callable[..., Recipe], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = grid(
        methods=["none", "blows up"],
        variants={"blows up": {"method": "none", "distill": {"lr": 1e30, "clip": 0}}},
    )

    def run() -> tuple[Cell, Cell]:
        none, wild = run_recipe(recipe, places)
        return none, wild

    none, wild = run()
    assert len(none.runs) == 1
    assert wild.runs == ()
    (diverged,) = wild.diverged
    assert isinstance(diverged, Diverged)
    assert diverged.seed == 0
    seen = trained(monkeypatch)
    assert run()[1].diverged[0].path == diverged.path
    assert not seen, "it would diverge again"


def test_an_entry_of_several_teachers_is_read_in_step(
    grid: Callable[..., Recipe], places: Places, script: Callable[[nn.Module], str]
) -> None:
    both = f"{script(Pooling(1.0))} + {script(LargeOnBright())}"
    (cell,) = run_recipe(grid(teachers=[both], methods=["rd"]), places)
    assert cell.teacher == both
    assert len(cell.runs[0].result["teacher"]["name"].split("+")) == 2


def test_tuning_needs_validation_images(grid: Callable[..., Recipe], places: Places) -> None:
    recipe = grid(tune={"factors": [1, 2]}, extract={"views": "clean", "val_fraction": 0.01})
    with pytest.raises(UsageError, match="no validation split"):
        list(run_recipe(recipe, places))


def test_every_store_of_a_grid_is_planned_before_anything_is_trained(
    grid: Callable[..., Recipe],
    places: Places,
    script: Callable[[nn.Module], str],
    few: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = trained(monkeypatch)
    with pytest.raises(RdcacheError, match="not there"):
        list(run_recipe(grid(datasets=[f"folder:{few}", "folder:not there"]), places))
    first, second = script(Pooling(1.0)), script(LargeOnBright())
    recipe = grid(
        teachers=[first, second],
        tune={"factors": [1, 2]},
        per_teacher={second: {"extract": {"val_fraction": 0.01}}},
    )
    with pytest.raises(UsageError, match="no validation split") as caught:
        list(run_recipe(recipe, places))
    assert caught.value.facts["teacher"] == second
    assert not seen


def finished_with(folder: Path, val: float | None, test: float, metric: str = "accuracy") -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    metrics = {"val": {metric: val}, "test": {metric: test}}
    text = json.dumps({"schema": 1, "seed": 0, "dataset": {}, **metrics})
    (folder / "result.json").write_text(text)
    return Run(folder)


def test_better_values_on_the_test_images_change_no_choice(tmp_path: Path) -> None:
    config = DistillConfig(method="rd", select_metric="accuracy")
    factors = (0.1, 1.0, 10.0)

    def factor_where(tests: tuple[float, ...]) -> float:
        outcomes = [
            finished_with(tmp_path / str(number), val, test)
            for number, (val, test) in enumerate(zip((0.6, 0.7, 0.8), tests, strict=True))
        ]
        return tuned_by(config, factors, outcomes, 100).factor

    assert factor_where((0.9, 0.5, 0.1)) == factor_where((0.1, 0.5, 0.9)) == 10.0


def test_validation_images_too_few_for_a_metric_leave_the_reference(tmp_path: Path) -> None:
    config = DistillConfig(method="rd")
    outcomes = [finished_with(tmp_path / str(it), None, 0.9, "auroc") for it in range(2)]
    tuned = tuned_by(config, (1.0, 10.0), outcomes, 3, "auroc")
    assert (tuned.factor, tuned.metric) == (1.0, "auroc")


def test_options_of_a_method_are_merged_one_by_one(grid: Callable[..., Recipe]) -> None:
    (teacher,), (dataset,) = grid().teachers, grid().datasets

    def of(**options: float) -> dict[str, Any]:
        return {"method_options": options}

    recipe = grid(
        methods=["mine"],
        distill={"epochs": 1, **of(width=8, beta=1, alpha=1, temperature=1, cka_weight=1)},
        per_dataset={dataset: {"distill": of(beta=2, alpha=2, temperature=2, cka_weight=2)}},
        per_teacher={teacher: {"distill": of(alpha=3, temperature=3, cka_weight=3)}},
        per_method={"rd": of(temperature=4, cka_weight=4)},
        variants={"mine": {"method": "rd", "options": {"cka_weight": 5}}},
    )
    config = recipe.distill_config(teacher, dataset, recipe.students[0], "mine", Places())
    assert config.method_options == {
        "width": 8,
        "beta": 2,
        "alpha": 3,
        "temperature": 4,
        "cka_weight": 5,
    }


@pytest.mark.parametrize(
    ("trials", "factor"),
    [
        ((trial(0.1, 0.5), trial(1, 0.6), trial(10, 0.7)), 10),
        ((trial(0.1, 0.7), trial(1, 0.7), trial(10, 0.7)), 1),
        ((trial(0.1, 0.7), trial(1, 0.6), trial(10, 0.7)), 0.1),
        ((trial(0.1, 0.5, 0.7), trial(1, 0.6, 0.5), trial(10, 0.9, None)), 0.1),
        ((trial(0.1, None), trial(1, None)), 1),
    ],
)
def test_the_best_mean_is_chosen_and_of_equal_ones_that_nearest_to_the_reference(
    trials: tuple[Trial, ...], factor: float
) -> None:
    assert chosen(trials) == factor


def test_a_factor_multiplies_the_weights_that_are_not_zero_and_nothing_else() -> None:
    config = DistillConfig(method="rd-paper", method_options={"beta": 2.0})
    assert tuned_options(config) == ("beta", "cka_weight")
    assert with_factor(config, 1) is config
    before, after = config.resolved(), with_factor(config, 0.1).resolved()
    changed = {"beta": pytest.approx(0.2), "cka_weight": pytest.approx(0.1)}
    assert after.method_options == {**before.method_options, **changed}
    assert tuned_options(DistillConfig(method="none")) == ()
    assert tuned_options(DistillConfig(method="rd", method_options={"beta": 0})) == ("cka_weight",)


def test_a_small_validation_split_is_said_to_be_one() -> None:
    assert "1.1 points" in str(about_few(92))
    assert about_few(1000) is None


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ("variants: {mine: {method: rdd}}", "no method named 'rdd'"),
        ("variants: {mine: {method: rd, options: {bets: 0}}}", "option of rd named 'bets'"),
        ("variants: {mine: {method: rd, distill: {seeds: [1]}}}", "seeds is given by the grid"),
        ("variants: {mine: {method: rd}, other: {method: rd}}", "named 'other'"),
        ("variants: {mine: {method: rd}, none: {method: rd}}", "a name of its own"),
        ("variants: {mine: {method: rd}}\ntune: {factors: [1]}", "at least two factors"),
        ("variants: {mine: {method: rd}}\ntune: {factors: [1, 1]}", "listed twice"),
        ("variants: {mine: {method: rd}}\ntune: {distill: {epochs: 0}}", "greater than 0"),
        ("variants: {mine: {method: rd}}\nside_by_side: 0", "greater than 0"),
    ],
)
def test_slips_in_variants_and_tuning_are_found_before_anything_runs(
    tmp_path: Path, changes: str, complaint: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"{GRID}{changes}\n")
    with pytest.raises(UsageError, match=complaint):
        load_recipe(recipe)


@pytest.mark.parametrize("name", sorted(path.name for path in PIPELINES.glob("*.yaml")))
def test_every_recipe_that_travels_with_the_package_is_valid(name: str) -> None:
    assert load_recipe(shipped_recipe(name)).title


def test_every_recipe_that_a_page_or_a_recipe_names_is_there() -> None:
    root = Path(__file__).parents[1]
    there = [path.name for path in PIPELINES.glob("*.yaml")]
    pages = [*root.glob("*.md"), *root.glob("docs/*.md"), *PIPELINES.glob("*.yaml")]
    assert len(pages) > len(there) > 10
    missing = [
        f"{page.name} names {name}"
        for page in pages
        for name in re.findall(r"[\w*.-]+\.yaml", page.read_text(encoding="utf-8"))
        if name != "config.yaml" and not fnmatch.filter(there, name)
    ]
    assert missing == []


def test_several_grids_share_what_they_do_not_say_themselves(
    grid: Callable[..., Recipe], few: Path
) -> None:
    one = grid()
    recipe = Recipe(
        title="Two grids",
        methods=["none", "rd"],
        seeds=[0, 1],
        extract={"views": "clean", "val_fraction": 0.2},
        distill={"epochs": 3, "batch_size": 8, "method_options": {"width": 16}},
        tune={"factors": [0.1, 1]},
        grids=[
            {"datasets": ["phantom"], "teachers": one.teachers, "students": one.students},
            {
                "datasets": ["phantom-seg"],
                "teachers": one.teachers,
                "students": ["unet-shufflenet-x0.5"],
                "methods": ["none", "hint"],
                "seeds": [2, 3],
                "tune": {"factors": [1, 10], "distill": {"epochs": 2}},
                "extract": {"views": 2},
                "distill": {"epochs": 1},
            },
        ],
    )
    first, second = recipe.as_grids()
    assert (first.methods, second.methods) == (("none", "rd"), ("none", "hint"))
    assert (first.seeds, second.seeds) == ((0, 1), (2, 3))
    assert [each.tune and each.tune.factors for each in (first, second)] == [(0.1, 1), (1, 10)]
    assert second.extract == {"views": 2, "val_fraction": 0.2}
    cell = (one.teachers[0], "phantom-seg", "unet-shufflenet-x0.5", "hint", Places())
    config = second.distill_config(*cell)
    assert (config.epochs, config.batch_size) == (1, 8)
    assert config.method_options == {"width": 16}
    assert second.distill_config(*cell, tuning=True).epochs == 2
    assert one.as_grids() == [one]


def test_a_method_that_is_not_for_a_grids_task_is_found_before_anything_runs(
    grid: Callable[..., Recipe], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = grid(datasets=["phantom-seg"], students=["unet-shufflenet-x0.5"])
    plan = SimpleNamespace(dataset=SimpleNamespace(task="segmentation", dimensions=2))
    monkeypatch.setattr("rdcache.recipes.running.plan_extraction", lambda *_: plan)
    monkeypatch.setattr("rdcache.recipes.running._extracted", lambda *_: pytest.fail("extracted"))
    with pytest.raises(UsageError, match="rd is not for segmentation of images"):
        list(run_recipe(recipe, places))


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ("grids: [{datasets: [phantom], students: [shufflenet]}]", "teachers are missing"),
        (
            "datasets: [busi]\ngrids: [{datasets: [phantom], teachers: [efficientnet-lite0], "
            "students: [shufflenet]}]",
            "listed by each of the grids",
        ),
        ("grids: [{datasets: [phantom], teachers: [x, x], students: [y]}]", "listed twice"),
        ("teachers: [x]\nstudents: [y]\ngrids: [{datasets: [p], seeds: [1, 1]}]", "listed twice"),
        ("grids: [{datasets: [p], teachers: [x], students: [y], distill: {method: rd}}]", "grid"),
        (
            "grids: [{datasets: [p], teachers: [x], students: [y], tune: {factors: [1, 1]}}]",
            "listed twice",
        ),
        (
            "grids: [{datasets: [phantm], teachers: [efficientnet-lite0], students: [shufflenet]}]",
            "no dataset named 'phantm'",
        ),
        (
            "teachers: [x]\nstudents: [y]\ngrids: [{datasets: [p, q]}, {datasets: [q]}]",
            "two grids have x, q, y, none",
        ),
    ],
)
def test_slips_in_grids_are_found_before_anything_runs(
    tmp_path: Path, changes: str, complaint: str
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"title: x\nmethods: [none]\n{changes}\n")
    with pytest.raises(UsageError, match=complaint):
        load_recipe(recipe)
