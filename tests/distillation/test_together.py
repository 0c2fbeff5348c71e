"""Runs that are trained side by side come to what each would have come to alone."""

from __future__ import annotations

import json
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rdcache.distillation import DistillConfig, Diverged, Run, distill, distill_each, distill_many
from rdcache.distillation.shared_sources import Sources
from rdcache.distillation.statistics import channel_statistics
from rdcache.distillation.subset import Subset
from rdcache.distillation.training import Trainer
from rdcache.errors import DeviceMemoryError, TrainingError, UsageError
from rdcache.methods import ChannelStatistics
from rdcache.models import create_student
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
    original = Store.read_stored

    def counting(store: Store, samples: Any, *rest: Any, **named: Any) -> Any:
        read.append(len(samples))
        return original(store, samples, *rest, **named)

    monkeypatch.setattr(Store, "read_stored", counting)
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


def test_a_first_stage_reads_the_taps_of_its_branch_alone(
    tiny: Tiny, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, ...]] = []
    original = Store.read_stored

    def noting(store: Store, samples: Any, views: Any, taps: Any, **named: Any) -> Any:
        if len(samples) == options()["batch_size"]:
            read.append(tuple(taps))
        return original(store, samples, views, taps, **named)

    monkeypatch.setattr(Store, "read_stored", noting)
    own = {"teacher_epochs": 1, "tap": "tokens", "pairs": "s4:s3", "cka_weight": 0}
    changes = {"method": "drd", "method_options": own, "epochs": 1, "resident": "disk"}
    distill_many(tiny.store, configs(options(**changes), {}))
    steps = len(read) // 2
    assert read == [("tokens",)] * steps + [("tokens", "s4")] * steps
    assert steps > 0


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


def test_one_that_diverges_is_set_aside_and_the_others_are_finished(
    tiny: Tiny, options: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It diverges in its second epoch, when it has a checkpoint and the others go on."""
    original = Trainer._require_finite
    noted: list[str] = []

    def of_a_loss_that_is_none(trainer: Trainer, line: dict[str, Any]) -> None:
        if trainer.config.student == "mobilenet" and trainer.epoch == 1:
            assert list((tmp_path / "runs").rglob("*mobilenet*/seed4/checkpoint*"))
            line["loss"] = float("nan")
        elif trainer.epoch == 2:  # of those that go on
            (record,) = (tmp_path / "runs").rglob("diverged.json")
            noted.append(json.loads(record.read_text())["of"]["dataset"]["name"])
        original(trainer, line)

    monkeypatch.setattr(Trainer, "_require_finite", of_a_loss_that_is_none)
    fine = {"method": "none"}, {"method_options": DROPOUT}, {"method": "none", "seeds": (5,)}
    failing = {"student": "mobilenet", "method": "none", "seeds": (4,)}
    first, *rest = ({"seeds": (4,), **changes} for changes in fine)
    with pytest.raises(TrainingError, match="mobilenet by none, seed 4") as caught:
        distill_many(tiny.store, configs(options(epochs=3), first, failing, *rest))
    assert caught.value.facts["others"] == "3 finished"
    assert noted, "while the others go on"
    assert "epoch 1" in caught.value.facts["why"]
    assert "--lr" in caught.value.facts["next"]
    assert not list((tmp_path / "runs").rglob("checkpoint*"))
    assert len(list((tmp_path / "runs").rglob("result.json"))) == 3
    assert not list((tmp_path / "runs").rglob("*mobilenet*/seed4/result.json"))

    # Gone on with, it is what it was; trained again without, it may come to something.
    monkeypatch.setattr(Trainer, "_require_finite", original)
    (known,) = distill_each(tiny.store, configs(options(epochs=3), failing), resume=True)
    assert isinstance(known, Diverged)
    assert (known.student, known.method, known.seed) == ("mobilenet", "none", 4)
    assert known.error.summary == caught.value.facts["why"]
    distill_many(tiny.store, configs(options(epochs=3), failing))
    assert not list((tmp_path / "runs").rglob("diverged.json"))

    finished = distill_many(tiny.store, configs(options(epochs=3), first, *rest))
    assert [run.status for run in finished] == ["done before"] * 3
    alone = options(epochs=3, out=tmp_path / "alone")
    for run, changes in zip(finished[1:], rest, strict=True):  # `first` is as the last but its seed
        assert_same(run, distill_many(tiny.store, configs(alone, changes))[0])


def test_no_more_are_trained_side_by_side_than_asked_for(tiny: Tiny, options: Options) -> None:
    several = [{"method": "none", "lr": rate} for rate in (1e-3, 2e-3, 3e-3)]
    runs = distill_each(tiny.store, configs(options(epochs=1), *several), side_by_side=2)
    assert [run.result["side_by_side"] for run in runs if isinstance(run, Run)] == [2, 2, 1]


def test_only_those_who_can_share_batches_are_trained_side_by_side(
    tiny: Tiny, options: Options
) -> None:
    quick = options(epochs=1, method="none")
    several = {}, {"lr": 1e-3}, {"batch_size": 16}, {"image_size": 48}, {"views": 1}, {"jitter": 0}
    runs = distill_many(tiny.store, configs(quick, *several))
    assert [run.result["side_by_side"] for run in runs] == [2, 2, 1, 1, 1, 1]


def test_seconds_of_an_epoch_are_not_those_of_its_neighbours(tiny: Tiny, options: Options) -> None:
    several = {"student": "shufflenet-x0.5"}, {"student": "mobilenet"}, {"student": "resnet18"}
    runs = distill_many(tiny.store, configs(options(method="none"), *several))
    own = [run.result["seconds_in_epochs"] for run in runs]
    assert all(seconds > 0 for seconds in own)
    assert sum(own) <= runs[0].result["seconds"]


def test_each_run_says_where_its_own_taps_were_and_that_it_was_not_compiled(
    tiny: Tiny, options: Options
) -> None:
    several = {"resident": "host", "method_options": DROPOUT}, {"method": "none"}
    for order in (several, several[::-1]):
        runs = distill_many(tiny.store, configs(options(epochs=1), *order), overwrite=True)
        where = {run.config["config"]["method"]: run.result["environment"] for run in runs}
        assert where["rd"]["taps"].startswith("host")
        assert where["none"]["taps"].startswith("disk")
        assert where["rd"]["compiled"].startswith("off (")


def test_channels_of_a_tap_are_read_once_for_all(
    tiny: Tiny, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def counting(store: Store, tap: str, subset: Subset) -> ChannelStatistics:
        read.append(tap)
        return channel_statistics(store, tap, subset)

    monkeypatch.setattr("rdcache.distillation.shared_sources.channel_statistics", counting)
    several = (
        {"seeds": (0, 1), "method_options": DROPOUT},
        {"seeds": (0, 1), "method_options": {**DROPOUT, "tap": "tokens"}},
    )
    distill_many(tiny.store, configs(options(epochs=1), *several))
    assert sorted(read) == ["s4", "tokens"]


def test_taps_of_earlier_runs_make_room_for_those_that_are_asked_for_now(
    tiny: Tiny, options: Options
) -> None:
    sources = Sources(tiny.store, tiny.dataset, torch.device("cpu"), lambda note: None)
    config = DistillConfig(**options(resident="host"))
    first, _ = sources.taps(["s4"], config)
    assert sources.taps(["s4"], config)[0] is first
    held = weakref.ref(first)
    del first
    sources.taps(["tokens"], config)
    assert held() is None


def test_students_of_other_normalisations_share_decoded_images_and_cuts(
    tiny: Tiny, options: Options
) -> None:
    sources = Sources(tiny.store, tiny.dataset, torch.device("cpu"), lambda note: None)
    config = DistillConfig(**options())
    one, other = (create_student(name, 3) for name in ("mobilenet", "timm:test_resnet.r160_in1k"))
    assert one.mean != other.mean
    first, second = (sources.inputs(config, student) for student in (one, other))
    assert first is sources.inputs(config, one)
    assert first.images is second.images
    before = first.batch([0, 1], 0)
    assert not torch.equal(second.batch([0, 1], 0), before)
    assert torch.equal(first.batch([0, 1], 0), before)
    larger = config.model_copy(update={"image_size": 48})
    assert sources.inputs(larger, one).images is not first.images


def test_configs_that_differ_only_in_circumstances_stand_for_one_run(
    tiny: Tiny, options: Options
) -> None:
    quick = options(epochs=1, method="none")
    twice = {"checkpoint_seconds": 0}, {"lr": 1e-3}, {"checkpoint_seconds": 100}
    runs = distill_many(tiny.store, configs(quick, *twice))
    assert [run.config["config"]["lr"] for run in runs] == [5e-3, 1e-3, 5e-3]
    assert runs[0].path == runs[2].path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ((), "nothing to train"),
        (({}, {"dataset": "folder:elsewhere"}), "dataset differs between the configs"),
        (({"uid_salt": "s3cret"}, {}), "uid_salt differs between the configs"),
        (({"student": "mobilenet,shufflenet"},), r"one student[\s\S]*distill_many"),
    ],
)
def test_lists_of_configs_that_cannot_be_trained_together_are_one_sentence(
    tiny: Tiny, options: Options, changes: tuple[dict[str, Any], ...], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence) as caught:
        distill_many(tiny.store, configs(options(), *changes))
    assert "s3cret" not in str(caught.value)


def test_a_gpu_that_is_too_small_is_one_sentence(
    tiny: Tiny, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def step(*arguments: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(Trainer, "step", step)
    with pytest.raises(DeviceMemoryError, match="does not fit") as caught:
        distill_many(tiny.store, configs(options(method="none"), {}))
    assert caught.value.facts["why"] == "CUDA out of memory"
    assert "--batch-size" in caught.value.facts["next"]


@pytest.mark.parametrize("students", [",", "mobilenet,mobilenet"])
def test_a_list_of_students_names_each_once(students: str) -> None:
    with pytest.raises(UsageError, match="named once"):
        DistillConfig(student=students).for_each_student()
