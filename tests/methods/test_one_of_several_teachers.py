"""Methods of one tap, where the stores of several teachers are read in step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from rdcache.errors import UsageError
from rdcache.methods import CachedBatch, MethodContext, TrainingProgress, create_method
from rdcache.models import StudentOutput
from rdcache.store import TapSpec

BuildContext = Callable[..., MethodContext]
START = TrainingProgress(epoch=0, epochs=10)
TAPS = {
    "a.s4": TapSpec("a.s4", "map2d", (16, 3, 3)),
    "a.pooled": TapSpec("a.pooled", "vector", (16,)),
    "b.s4": TapSpec("b.s4", "map2d", (16, 3, 3)),
    "b.logits": TapSpec("b.logits", "logits", (3,)),
}


@pytest.fixture
def setting(context: BuildContext) -> MethodContext:
    return context(taps=TAPS, default_tap="a.s4", teachers={"a": "a.s4", "b": "b.s4"})


@pytest.mark.parametrize(
    ("method", "tap", "head", "read"),
    [
        ("hint", "a.s4", "auto", {"a.s4", "a.pooled"}),
        ("hint", "b.s4", "auto", {"b.s4", "b.logits"}),
        ("hint", "b.s4", "linear-probe", {"b.s4"}),
        ("hint", "b.s4", "rd", {"b.s4"}),
        ("crd", "a.pooled", "auto", {"a.pooled"}),
        ("crd", "b.s4", "own", {"b.s4", "b.logits"}),
        ("srrl", "b.s4", "auto", {"b.s4"}),
    ],
)
def test_logits_are_those_of_the_teacher_whose_tap_is_named(
    setting: MethodContext, method: str, tap: str, head: str, read: set[str]
) -> None:
    own = {"tap": tap, "kd_weight": 1.0, "teacher_head": head}
    assert set(create_method(method, own, setting).taps) == read


def test_logits_of_other_classes_are_known_by_their_teacher(setting: MethodContext) -> None:
    """Those of a teacher that was adapted to another dataset."""
    own = {"tap": "b.s4", "kd_weight": 1.0}
    foreign = replace(setting, foreign_logits=frozenset({"b.logits"}))
    assert set(create_method("hint", own, foreign).taps) == {"b.s4"}
    with pytest.raises(UsageError, match="no logits of its 3 classes"):
        create_method("hint", {**own, "teacher_head": "own"}, foreign)


def test_such_a_method_computes_all_its_terms(
    setting: MethodContext, student_output: Callable[[MethodContext], StudentOutput]
) -> None:
    method = create_method("hint", {"tap": "b.s4", "kd_weight": 1.0}, setting)
    method.begin_stage("student")
    taps = {name: torch.randn(8, *spec.shape) for name, spec in TAPS.items()}
    batch = CachedBatch(torch.arange(8), taps, torch.arange(8) % 3)
    student = student_output(setting)
    terms = method(batch, student, START)
    assert terms.keys() == {"ce", "hint", "kd"}
    p_t, p_s = (taps["b.logits"] / 4).softmax(1), (student.logits / 4).softmax(1)
    expected = 16 * (p_t * (p_t / p_s).log()).sum(1).mean().item()
    assert terms["kd"].item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("method", ["kd", "dkd", "dist", "mlkd", "rcka", "at", "vid", "reviewkd"])
def test_advice_names_no_option_that_the_method_lacks(setting: MethodContext, method: str) -> None:
    with pytest.raises(UsageError, match="reads one tap, and there are several") as caught:
        create_method(method, {}, setting)
    assert caught.value.facts["next"] == "a single --teacher, or --method rd"


@pytest.mark.parametrize("method", ["hint", "sp", "rkd", "srrl", "sdd", "direct"])
def test_advice_names_a_tap_where_one_can_be_named(setting: MethodContext, method: str) -> None:
    with pytest.raises(UsageError) as caught:
        create_method(method, {}, setting)
    assert caught.value.facts["next"].startswith("--set tap=a.s4 to read one of them")
    assert create_method(method, {"tap": "a.s4"}, setting).taps == ("a.s4",)
