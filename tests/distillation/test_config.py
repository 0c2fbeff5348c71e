"""Presets, explicit options, and what makes two runs the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from rdcache.distillation import DistillConfig
from rdcache.distillation.config import config_from_options
from rdcache.errors import UnknownNameError, UsageError


def test_a_preset_replaces_defaults_and_an_explicit_option_replaces_the_preset() -> None:
    plain = DistillConfig(method="rd-paper").resolved()
    assert (plain.lr, plain.schedule, plain.epochs) == (5e-3, "step", 240)
    assert plain.method_options["cka_estimator"] == "biased"
    own = DistillConfig(
        method="rd-paper", lr=2e-3, epochs=3, method_options={"cka_estimator": "unbiased"}
    ).resolved()
    assert (own.lr, own.schedule, own.epochs) == (2e-3, "step", 3)
    assert own.method_options["cka_estimator"] == "unbiased"
    assert own.method_options["kl_grad"] == "both"


def test_an_option_equal_to_the_default_still_replaces_the_preset() -> None:
    default = DistillConfig().lr
    assert DistillConfig(method="rd-paper", lr=default).resolved().lr == default


def test_rd_and_the_plain_student_have_the_same_budget() -> None:
    differing = {"method", "method_options"}
    one, other = (
        DistillConfig(method=method).resolved().model_dump(exclude=differing)
        for method in ("rd", "none")
    )
    assert one == other


def test_options_of_the_method_may_stand_beside_those_of_training() -> None:
    config = config_from_options("resnet18", "rd", {"seed": 4, "epochs": 7, "temperature": 2.0})
    assert config.seeds == (4,)
    assert config.epochs == 7
    assert config.method_options == {"temperature": 2.0}


def test_a_name_that_neither_knows_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="temperature"):
        config_from_options("resnet18", "rd", {"temprature": 2.0}).resolved()


def test_a_run_is_identified_by_what_decides_its_weights() -> None:
    base = DistillConfig().resolved().digest("store")
    for same in ({"out": Path("elsewhere")}, {"device": "cpu"}, {"seeds": (1, 2)}):
        assert DistillConfig(**same).resolved().digest("store") == base
    for other in ({"lr": 1e-3}, {"student": "resnet18"}, {"method_options": {"beta": 2.0}}):
        assert DistillConfig(**other).resolved().digest("store") != base
    assert DistillConfig().resolved().digest("another store") != base
    assert DistillConfig(lr=5e-3).resolved().digest("store") == base


def test_how_far_images_are_reduced_decides_a_run_and_where_they_are_kept_does_not() -> None:
    base = DistillConfig().resolved().digest("store")
    assert DistillConfig(inputs_cache=Path("kept")).resolved().digest("store") == base
    assert DistillConfig(working_scale=0).resolved().digest("store") != base
    assert DistillConfig(working_scale=2).resolved().digest("store") == base


def test_a_scale_that_would_blur_is_refused() -> None:
    with pytest.raises(UsageError, match=r"working_scale: it must be 0 or at least 1"):
        config_from_options("resnet18", "rd", {"working_scale": 0.5})


def test_one_teacher_head_may_be_given_to_methods_that_read_no_logits() -> None:
    hint = DistillConfig(method="hint", teacher_head="linear-probe").resolved()
    assert hint.method_options["teacher_head"] == "linear-probe"
    # A resolved config, which lists all options, is as good as what it came from.
    assert hint.resolved() == hint
    with pytest.raises(UsageError, match="temperature is given, and nothing of hint"):
        DistillConfig(method="hint", method_options={"temperature": 2.0}).resolved()
