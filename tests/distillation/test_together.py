"""Runs that are trained side by side come to what each would have come to alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rdcache.distillation import DistillConfig, distill, distill_many
from rdcache.errors import TrainingError, UsageError
from rdcache.store import Store

from .conftest import Tiny
from .test_resume import assert_same

Options = Callable[..., dict[str, Any]]
DROPOUT = {"dropout": 0.3, "width": 16}


def configs(options: dict[str, Any], *changes: dict[str, Any]) -> list[DistillConfig]:
    return [DistillConfig(**{**options, **change}) for change in changes]


def test_students_and_methods_side_by_side_come_to_the_same_as_alone(
    tiny: Tiny, options: Options, tmp_path: Path
) -> None:
    several = (
        {"student": "shufflenet-x0.5", "method_options": DROPOUT},
        {"student": "mobilenet", "method_options": DROPOUT},
        {"method": "none"},
        {"method_options": {**DROPOUT, "teacher_epochs": 2, "tap": "tokens"}},
    )
    together = distill_many(tiny.store, configs(options(), *several))
    assert [run.result["side_by_side"] for run in together] == [4] * 4
    alone = options(out=tmp_path / "alone")
    for run, config in zip(together, configs(alone, *several), strict=True):
        (single,) = distill_many(tiny.store, [config])
        assert_same(run, single)


def test_each_batch_is_read_once_for_all_who_want_it(
    tiny: Tiny, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    original = Store.read

    def counting(store: Store, samples: Any, *rest: Any, **named: Any) -> Any:
        read.append(len(samples))
        return original(store, samples, *rest, **named)

    monkeypatch.setattr(Store, "read", counting)
    base = {"method_options": {"cka_weight": 0}, "select": "last", "validate_every": 100}

    def reads(*changes: dict[str, Any]) -> int:
        read.clear()
        distill_many(tiny.store, configs(options(**base, resident="disk"), *changes))
        return read.count(options()["batch_size"])

    one = reads({"order_seed": 5})
    students = {"student": "resnet18", "order_seed": 5}, {"student": "mobilenet", "order_seed": 5}
    assert reads(*students) == one > 0
    assert reads({"seeds": (1, 2), "order_seed": 5}) == one
    assert reads({"seeds": (1, 2)}) == 2 * one


def test_seeds_in_one_order_differ_in_their_weights_and_equal_lone_runs(
    tiny: Tiny, options: Options, tmp_path: Path
) -> None:
    both = distill_many(
        tiny.store,
        configs(options(), {"seeds": (1, 2), "order_seed": 0, "method_options": DROPOUT}),
    )
    lone = distill(tiny.store, seed=2, order_seed=0, **DROPOUT, **options(out=tmp_path / "alone"))
    assert_same(both[1], lone)
    first, second = (run.student.state_dict() for run in both)
    assert not all((first[name] == second[name]).all() for name in first)


def test_an_interruption_of_several_is_gone_on_with(
    tiny: Tiny, options: Options, tmp_path: Path
) -> None:
    several = {"method_options": DROPOUT}, {"method": "none"}

    def interrupt(done: int, total: int, note: str = "") -> None:
        if done == 3 * total // 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill_many(tiny.store, configs(options(), *several), on_progress=interrupt)
    with pytest.raises(UsageError, match="--resume"):
        distill_many(tiny.store, configs(options(), *several))
    resumed = distill_many(tiny.store, configs(options(), *several), resume=True)
    assert [run.status for run in resumed] == ["resumed"] * 2
    whole = distill_many(tiny.store, configs(options(out=tmp_path / "whole"), *several))
    for one, other in zip(resumed, whole, strict=True):
        assert_same(one, other)


def test_one_that_diverges_leaves_the_others_checkpoints(
    tiny: Tiny, options: Options, tmp_path: Path
) -> None:
    several = (
        {"method": "none"},
        {"method": "none", "lr": 1e30, "clip": 0.0, "validate_every": 100, "epochs": 3},
    )
    with pytest.raises(TrainingError):
        distill_many(tiny.store, configs(options(epochs=4), *several))
    assert len(list((tmp_path / "runs").rglob("checkpoint*"))) <= 1
    assert not list((tmp_path / "runs").rglob("result.json"))


@pytest.mark.parametrize("students", [",", "mobilenet,mobilenet"])
def test_a_list_of_students_names_each_once(students: str) -> None:
    with pytest.raises(UsageError, match="named once"):
        DistillConfig(student=students).for_each_student()
