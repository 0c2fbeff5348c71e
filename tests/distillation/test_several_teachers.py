"""Students of several teachers: from the stores to finished runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from rdcache.cli import cli
from rdcache.data import VIEW_COLUMNS, ViewSpec, load_dataset, view_parameters
from rdcache.distillation import DistillConfig, choose_store, distill, distill_many
from rdcache.distillation.metrics import classification_metrics
from rdcache.distillation.preparing import create_trainer
from rdcache.distillation.residency import ReadTaps, ResidentTaps
from rdcache.distillation.teacher_branch import load_teacher_branch
from rdcache.errors import StoreNotFoundError, UsageError
from rdcache.store import (
    Fingerprint,
    JointStore,
    SampleTable,
    Store,
    StoreContent,
    StoreLayout,
    TapSpec,
    classes_of_logits,
    create_store,
    store_location,
)

from .conftest import QUICK, Tiny
from .test_resume import assert_same

Options = Callable[..., dict[str, Any]]
RD: dict[str, Any] = {"width": 16, "dropout": 0.3, "teacher_weights": "learned"}
VIEWS = 2


def write_second(root: Path, tiny: Tiny, teacher: str, seed: int = 1) -> Store:
    """A store of another teacher with fewer views than the first, under a root."""
    dataset = tiny.dataset
    spec = ViewSpec.parse(str(VIEWS), symmetry=dataset.symmetry)
    parameters = view_parameters(spec, dataset.uids, [s.size for s in dataset.samples])
    training = int((dataset.splits == "train").sum())
    layout = StoreLayout.plan((TapSpec("pooled", "vector", (6,)),), (len(dataset), training))
    samples = SampleTable(
        tuple(dataset.uids), dataset.labels, tuple(dataset.splits), dataset.group_codes
    )
    own = tiny.store.manifest["dataset"]
    weights = {"source": "random"}
    facts = {
        "dataset": own,
        "teacher": {"name": teacher, "weights": weights, "default_tap": "pooled"},
        "views": spec.to_dict(),
    }
    fingerprint = Fingerprint({"dataset": dataset.digest, "teacher": teacher, "seed": seed})
    location = store_location(root, own["name"], teacher, fingerprint.digest)
    writer = create_store(
        location, StoreContent(layout, fingerprint, samples, parameters, VIEW_COLUMNS, facts)
    )
    for shard in writer.missing():
        count = shard.stop - shard.start
        values = np.random.default_rng([seed, shard.view]).normal(size=(count, 6))
        writer.write(shard, {"pooled": values.astype(np.float16)}, np.ones(count, np.uint8))
    return writer.commit({"provenance": {}})


@pytest.fixture(scope="module")
def second(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return write_second(tmp_path_factory.mktemp("root"), tiny, "another")


@pytest.fixture(scope="module")
def joint(tiny: Tiny, second: Store) -> Store:
    return choose_store([tiny.store, second.location])


def test_a_run_from_several_stores_that_is_interrupted_ends_in_the_same_weights(
    joint: Store, options: Options, tmp_path: Path
) -> None:
    def interrupt(done: int, total: int, note: str = "") -> None:
        if done == 3 * total // 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        distill(joint, **RD, on_progress=interrupt, **options())
    resumed = distill(joint, **RD, resume=True, **options())
    whole = distill(joint, **RD, **options(out=tmp_path / "whole"))
    assert resumed.status == "resumed"
    assert_same(resumed, whole)
    assert resumed.path.parent.name.startswith("folder-images-invented+another-shufflenet-x0.5-rd-")
    assert resumed.result["teacher"]["name"] == "invented+another"
    assert "another" in resumed.config["store"]["location"]
    for line in resumed.history:
        weights = [line[f"weight {tap}"] for tap in ("invented.s4", "another.pooled")]
        assert sum(weights) == pytest.approx(1)
        assert weights != [0.5, 0.5]
    assert {"teacher_accuracy", "accuracy"} <= resumed.metrics.keys()


@pytest.mark.parametrize(("several", "ema"), [(False, 0.5), (True, 0.0)])
def test_the_teacher_branch_is_that_of_the_selected_epoch(
    tiny: Tiny,
    joint: Store,
    options: Options,
    monkeypatch: pytest.MonkeyPatch,
    several: bool,
    ema: float,
) -> None:
    epochs = iter(range(9))

    def ever_worse(*args: Any) -> dict[str, Any]:
        return {**classification_metrics(*args), "accuracy": -next(epochs) / 10}

    def interrupt(done: int, total: int, note: str = "") -> None:
        if done == total:
            raise KeyboardInterrupt

    monkeypatch.setattr("rdcache.distillation.evaluators.classification_metrics", ever_worse)
    store = joint if several else tiny.store
    own = {"width": 16, "select": "best", "select_metric": "accuracy", "ema": ema}
    own |= {"teacher_weights": "learned"} if several else {}
    with pytest.raises(KeyboardInterrupt):
        distill(store, on_progress=interrupt, **options(**own))
    run = distill(store, resume=True, **options(**own))
    chosen, last = run.history
    assert run.result["selected_epoch"] == 0
    assert run.result["val_teacher_branch"]["nll"] == pytest.approx(chosen["val_teacher_nll"])
    assert chosen["val_teacher_nll"] != pytest.approx(last["val_teacher_nll"])
    assert run.result["val_cka"] == pytest.approx(chosen["val_cka"], abs=1e-6)
    branch = load_teacher_branch(run, store, tiny.dataset)
    val = np.flatnonzero(store.splits == "val")
    _, logits = branch.teacher_branch(store.read(val.tolist(), 0, branch.taps))
    losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(store.labels[val]))
    assert losses.item() == pytest.approx(chosen["val_teacher_nll"], rel=1e-4)


def test_side_by_side_and_wherever_taps_are_runs_come_to_the_same(
    joint: Store, options: Options, tmp_path: Path
) -> None:
    own = {"method_options": {**RD, "teacher_weights": "0.7,0.3"}, "resident": "host", "epochs": 1}
    configs = [
        DistillConfig(**options(**own)),
        DistillConfig(**options(method="none", resident="host", epochs=1)),
    ]
    both = distill_many(joint, configs)
    assert [run.result["side_by_side"] for run in both] == [2, 2]
    alone = DistillConfig(**options(**{**own, "resident": "disk"}, out=tmp_path / "alone"))
    (single,) = distill_many(joint, [alone])
    assert_same(both[0], single)


def test_kept_taps_are_those_that_are_read(joint: Store) -> None:
    names = list(joint.taps)
    kept = ResidentTaps(joint, names, joint.views, torch.device("cpu"))
    samples, views = np.array([3, 0, 3]), np.array([1, 0, 0])
    own, other = (source.read(samples, views, names) for source in (kept, ReadTaps(joint)))
    assert all(torch.equal(own[name], other[name]) for name in names)


def test_with_one_tap_named_a_joint_store_trains_what_the_store_that_has_it_would(
    joint: Store, tiny: Tiny, options: Options
) -> None:
    trainers = []
    for store, tap in ((joint, "invented.s4"), (tiny.store, None)):
        own = {"views": VIEWS, "method_options": {"width": 16, "tap": tap}}
        config = DistillConfig(**options(**own)).resolved()
        trainers.append(create_trainer(store, tiny.dataset, config, 0, torch.device("cpu")))
    jointly, alone = (trainer.method.state_dict() for trainer in trainers)
    assert jointly.keys() == alone.keys()
    assert all(torch.equal(jointly[name], alone[name]) for name in alone if "extra" not in name)
    one, other = (
        trainer.source.cached(trainer.picks()[0], trainer.method.taps) for trainer in trainers
    )
    assert torch.equal(one.taps["invented.s4"], other.taps["s4"])
    assert torch.equal(one.target, other.target)


def test_teachers_are_found_by_name_and_one_that_is_missing_is_named(
    tiny: Tiny, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    for number, name in enumerate(("a", "b")):
        write_second(root, tiny, name, seed=number)
    found = choose_store(root=root, teacher="b, a")
    assert isinstance(found, JointStore)
    assert [it.manifest["teacher"]["name"] for it in found.members] == ["b", "a"]
    again = choose_store([it.location for it in found.members], teacher="a,b")
    assert [it.manifest["teacher"]["name"] for it in again.members] == ["a", "b"]
    with pytest.raises(StoreNotFoundError) as caught:
        choose_store(root=root, dataset="folder:images", teacher="a,pmc-clip")
    command = "rdcache extract --teacher pmc-clip --dataset folder:images"
    assert caught.value.facts["next"].startswith(command)
    with pytest.raises(UsageError, match="other teachers"):
        choose_store([it.location for it in found.members], teacher="a,c")
    with pytest.raises(UsageError, match="named once"):
        choose_store(root=root, teacher="a,a")
    with pytest.raises(UsageError, match="other teachers"):
        choose_store(found.members[0].location, teacher="a,b")


def test_the_command_line_names_the_stores_and_refuses_methods_of_one_tap(
    tiny: Tiny, second: Store, tmp_path: Path
) -> None:
    flags = [f"--{key.replace('_', '-')}={QUICK[key]}" for key in QUICK if key != "epochs"]
    common = ["distill", "--data-dir", str(tiny.data_dir), "--out", str(tmp_path / "runs")]
    stores = ["--store", str(tiny.store.location), "--store", str(second.location)]
    command = [*common, *stores, *flags, "--epochs=1", "--set", "teacher_weights=0.6,0.4"]
    done = CliRunner().invoke(cli, [*command, "--set", "width=16"], catch_exceptions=False)
    assert done.exit_code == 0
    assert f"Distilling from {tiny.store.location} + {second.location}" in done.stderr
    assert "from invented+another on folder:images" in done.stdout
    refused = CliRunner().invoke(cli, [*common, *stores, *flags, "--method", "kd"])
    assert isinstance(refused.exception, UsageError)
    assert "reads one tap, and there are several" in str(refused.exception)
    assert load_dataset(f"folder:{tiny.images}").digest == tiny.dataset.digest


def test_the_weights_of_teachers_name_a_run_only_where_they_are_given() -> None:
    plain = DistillConfig().resolved()
    assert plain.method_options["teacher_weights"] is None
    own = DistillConfig(method_options={"teacher_weights": "0.5,0.5"}).resolved()
    older = plain.model_copy(
        update={
            "method_options": _without(plain.method_options, "teacher_weights"),
        }
    )
    assert plain.digest("store") == older.digest("store") != own.digest("store")


def test_the_calibration_of_folds_names_a_run_only_where_there_are_folds() -> None:
    for folds, alike in ((0, True), (2, False)):
        options = {"folds": folds, "teacher_epochs": 1}
        digests = {
            DistillConfig(method_options={**options, "calibrate_folds": choice})
            .resolved()
            .digest("store")
            for choice in (True, False)
        }
        assert (len(digests) == 1) is alike


def _without(options: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in options.items() if key != name}


def test_classes_of_logits_are_told_by_each_member_for_its_own() -> None:
    told: dict[str, Any] = {"a": {"logits_classes": ["x", "y"]}, "b": {}}
    store = object.__new__(JointStore)
    store.taps = {}
    store._home = {
        f"{name}.{tap}": (cast(Store, SimpleNamespace(manifest={"teacher": teacher})), tap)
        for name, teacher in told.items()
        for tap in ("s4", "logits")
    }
    assert classes_of_logits(store) == {"a.logits": ["x", "y"]}
