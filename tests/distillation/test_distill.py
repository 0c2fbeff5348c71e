"""Runs from a store to a folder: what is trained, what is kept, what is refused."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rdcache.data import load_dataset
from rdcache.distillation import (
    DistillConfig,
    Run,
    distill,
    distill_seeds,
    evaluate_run,
    load_run,
    summarise,
)
from rdcache.distillation.preparing import create_trainer
from rdcache.errors import (
    FileWriteError,
    RunNotFoundError,
    StaleStoreError,
    TrainingError,
    UnknownNameError,
    UsageError,
)
from rdcache.store import open_store

from .conftest import Tiny, write_store

Options = Callable[..., dict[str, Any]]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return run.student.state_dict()


def equal(one: Run, other: Run) -> bool:
    theirs = weights(other)
    return all(torch.equal(value, theirs[name]) for name, value in weights(one).items())


@pytest.mark.parametrize(
    ("method", "changes", "terms"),
    [
        ("rd", {"teacher_epochs": 1, "teacher_ema": 0.9}, {"ce", "teacher_ce", "kl", "cka"}),
        ("rd-paper", {"width": 8}, {"ce", "teacher_ce", "kl", "cka"}),
        ("direct", {"tap": "tokens"}, {"ce", "kl"}),
        ("none", {}, {"ce"}),
    ],
)
def test_every_method_trains_from_a_store_and_leaves_a_whole_folder(
    tiny: Tiny, options: Options, method: str, changes: dict[str, Any], terms: set[str]
) -> None:
    run = distill(tiny.store, method=method, **options(epochs=1, **changes))
    assert run.status == "trained"
    assert {path.name for path in run.path.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "student.safetensors",
        *(["teacher_branch.safetensors"] if method != "none" else []),
        "predictions.csv",
        "result.json",
    }
    assert run.history[-1]["stage"] == "student"
    assert terms <= run.history[-1].keys()
    assert run.history[-1]["loss"] == pytest.approx(sum(run.history[-1][t] for t in terms))
    assert ("teacher_accuracy" in run.metrics) == (method != "none")
    assert run.metrics["n"] == (tiny.dataset.splits == "test").sum()
    assert run.student(torch.zeros(1, 3, 32, 32)).logits.shape == (1, 3)


def test_the_teacher_branch_trains_alone_first_if_it_is_told_to(
    tiny: Tiny, options: Options
) -> None:
    run = distill(tiny.store, **options(epochs=1, teacher_epochs=2))
    assert [(line["stage"], line["epoch"]) for line in run.history] == [
        ("teacher", 0),
        ("teacher", 1),
        ("student", 0),
    ]
    assert "val_accuracy" not in run.history[0]
    assert run.history[1]["teacher_ce"] < run.history[0]["teacher_ce"]


def test_predictions_are_kept_for_paired_tests(tiny: Tiny, options: Options) -> None:
    notes: list[str] = []
    run = distill(tiny.store, method="none", on_note=notes.append, **options(epochs=1))
    assert any(note.startswith("images: ") for note in notes)
    with (run.path / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["uid"] for row in rows] == list(tiny.dataset.uids[tiny.dataset.splits == "test"])
    hits = sum(row["label"] == row["predicted"] for row in rows)
    assert hits / len(rows) == pytest.approx(run.metrics["accuracy"])
    assert sum(float(rows[0][f"p_{name}"]) for name in tiny.dataset.classes) == pytest.approx(1)


def test_a_saved_student_gives_its_test_metrics_again_without_the_store(
    tiny: Tiny, options: Options
) -> None:
    run = distill(tiny.store, **options(jitter=0.3, ema=0.5))
    again = evaluate_run(load_run(run.path), data_dir=tiny.data_dir, device="cpu")
    assert again["confusion"] == run.metrics["confusion"]
    for name, value in again.items():
        if isinstance(value, float):
            assert run.metrics[name] == pytest.approx(value), name


def test_a_finished_run_is_returned_as_it_is_unless_overwritten(
    tiny: Tiny, options: Options
) -> None:
    first = distill(tiny.store, method="none", **options(epochs=1))
    written = (first.path / "result.json").stat().st_mtime_ns
    again = distill(tiny.store, method="none", **options(epochs=1))
    assert (again.path, again.status) == (first.path, "done before")
    assert (again.path / "result.json").stat().st_mtime_ns == written
    anew = distill(tiny.store, method="none", overwrite=True, **options(epochs=1))
    assert anew.status == "trained"
    assert equal(first, anew)


def test_seeds_make_runs_of_their_own_and_a_summary(tiny: Tiny, options: Options) -> None:
    config = DistillConfig(method="none", seeds=(0, 1), **options(epochs=1))
    before = torch.get_rng_state()
    runs = distill_seeds(tiny.store, config)
    assert torch.equal(torch.get_rng_state(), before), "the user's random state was moved"
    assert [run.seed for run in runs] == [0, 1]
    assert runs[0].path.parent == runs[1].path.parent
    assert not equal(*runs)
    accuracies = [run.metrics["accuracy"] for run in runs]
    summary = summarise(runs)["accuracy"]
    assert summary["mean"] == pytest.approx(sum(accuracies) / 2)
    assert summary["std"] == pytest.approx(abs(accuracies[0] - accuracies[1]) / 2**0.5)
    assert summary["n"] == 2


def test_a_metric_that_the_first_seed_lacks_is_summarised_over_the_others(tmp_path: Path) -> None:
    runs = []
    for seed, hd95 in enumerate((None, 2.0, 4.0)):
        (tmp_path / str(seed)).mkdir()
        test = {"dice": 0.5, "hd95": hd95}
        result = {"schema": 1, "seed": seed, "dataset": {}, "test": test}
        (tmp_path / str(seed) / "result.json").write_text(json.dumps(result))
        runs.append(load_run(tmp_path / str(seed)))
    assert summarise(runs)["hd95"] == {"mean": 3.0, "std": pytest.approx(2**0.5), "n": 2}


def test_methods_of_one_seed_share_initial_weights_batches_and_jitter(
    tiny: Tiny, options: Options
) -> None:
    trainers = [
        create_trainer(
            tiny.store,
            tiny.dataset,
            DistillConfig(method=method, **options()).resolved(),
            3,
            torch.device("cpu"),
        )
        for method in ("none", "rd")
    ]
    first, second = (trainer.student.state_dict() for trainer in trainers)
    assert all(torch.equal(first[name], second[name]) for name in first)
    images = [
        next(t.source.training(t.training.batches(8, 1, "student", 3), (), True, "student", 3, 1))
        for t in trainers
    ]
    assert images[0].images is not None
    assert images[1].images is not None
    assert torch.equal(images[0].images, images[1].images)


def test_the_best_epoch_on_validation_is_selected_and_of_equal_ones_the_later(
    tiny: Tiny, options: Options
) -> None:
    run = distill(tiny.store, method="none", **options(epochs=4))
    accuracies = [line["val_accuracy"] for line in run.history]
    best = max(range(4), key=lambda epoch: (accuracies[epoch], epoch))
    assert run.result["selected_epoch"] == best
    assert run.result["val"]["accuracy"] == pytest.approx(accuracies[best])
    assert run.result["val_last"]["accuracy"] == pytest.approx(accuracies[-1])
    last = distill(tiny.store, method="none", **options(epochs=4, select="last"))
    assert last.result["selected_epoch"] == 3
    assert last.metrics["accuracy"] == last.metrics["accuracy_last"]


def test_the_moving_average_of_the_student_is_what_is_saved(tiny: Tiny, options: Options) -> None:
    plain = distill(tiny.store, method="none", **options())
    averaged = distill(tiny.store, method="none", **options(ema=0.99))
    assert [line["ce"] for line in plain.history] == [line["ce"] for line in averaged.history]
    assert not equal(plain, averaged)


def test_metrics_without_leaked_images_are_given_beside_the_others(
    tiny: Tiny, options: Options
) -> None:
    store = open_store(tiny.store.location)
    leaked = [str(uid) for uid in store.uids[store.splits == "test"][:5]]
    store.manifest["dataset"]["leaks"]["leaked_test_uids"] = leaked
    run = distill(store, method="none", **options(epochs=1))
    assert run.result["test_without_leaks"]["n"] == run.metrics["n"] - 5
    assert run.metrics["accuracy_without_leaks"] == run.result["test_without_leaks"]["accuracy"]


def test_samples_without_tensors_are_left_out_and_counted(
    tiny: Tiny, options: Options, tmp_path: Path
) -> None:
    test = int((tiny.store.splits == "test").argmax())
    missing = ((0, 0), (0, 1), (0, 2), (1, 2), (test, 0))
    store = write_store(tmp_path / "store", tiny.dataset, not_finite=missing)
    run = distill(store, **options())
    assert run.result["training"]["left_out"] == 1
    assert run.result["training"]["missing_views"] == 4
    assert run.result["test_teacher_branch"]["n"] == run.metrics["n"] - 1


def test_a_store_by_teacher_and_dataset_is_the_newest_one(
    tiny: Tiny, options: Options, tmp_path: Path
) -> None:
    root = tmp_path / "root"
    shutil.copytree(tiny.store.location, root / "folder-images" / "invented" / "0123")
    chosen = {"teacher": "invented", "dataset": f"folder:{tiny.images}"}
    run = distill(method="none", **options(epochs=1, root=root, **chosen))
    assert run.config["store"]["location"] == str(root / "folder-images" / "invented" / "0123")


def test_a_changed_dataset_is_named(tiny: Tiny, options: Options, tmp_path: Path) -> None:
    images = tmp_path / "images"
    shutil.copytree(tiny.images, images)
    by_uid = {sample.uid: sample for sample in tiny.dataset.samples}
    train = [uid for uid, s in by_uid.items() if s.split == "train" and s.label == 0]
    (images / by_uid[train[0]].path.relative_to(tiny.images)).unlink()
    moved = by_uid[train[1]].path.relative_to(tiny.images)
    (images / moved).rename(images / "normal" / f"moved-{moved.name}")
    assert load_dataset(f"folder:{images}").digest != tiny.dataset.digest
    with pytest.raises(StaleStoreError, match=r"1 removed[\s\S]*1 relabelled[\s\S]*extract"):
        distill(tiny.store, method="none", **options(dataset=f"folder:{images}"))
    assert not (tmp_path / "runs").exists()


def test_another_dataset_than_the_stores_is_refused(tiny: Tiny, options: Options) -> None:
    store = open_store(tiny.store.location)
    store.manifest["dataset"]["name"] = "busi"
    for wrong in ({"dataset": "covid"}, {"teacher": "pmc-clip"}):
        with pytest.raises(UsageError, match="this store is of the"):
            distill(store, **options(**wrong))


def test_damaged_run_files_are_named(tiny: Tiny, options: Options) -> None:
    run = distill(tiny.store, method="none", **options(epochs=1))
    for content in ("", "[]", "{}", '{"schema": 1, '):
        (run.path / "result.json").write_text(content)
        with pytest.raises(RunNotFoundError, match=r"damaged[\s\S]*result.json"):
            _ = load_run(run.path).metrics
    (run.path / "result.json").write_text('{"schema": 99, "seed": 0, "test": {}, "dataset": {}}')
    with pytest.raises(RunNotFoundError, match="another version"):
        _ = load_run(run.path).metrics


def test_a_finished_run_whose_checkpoint_was_left_behind_is_finished(
    tiny: Tiny, options: Options
) -> None:
    run = distill(tiny.store, method="none", **options(epochs=1))
    (run.path / "checkpoint.safetensors").write_bytes(b"left by a kill")
    again = distill(tiny.store, method="none", **options(epochs=1))
    assert again.status == "done before"
    assert not (run.path / "checkpoint.safetensors").exists()


def test_an_unusable_run_folder_is_one_sentence(
    tiny: Tiny, options: Options, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileWriteError, match="cannot be written"):
        distill(tiny.store, method="none", **{**options(epochs=1), "out": tmp_path / "file"})


def test_a_store_without_test_images_is_refused_before_training(
    tiny: Tiny, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(tiny.store.location)
    store.splits = np.where(store.splits == "test", "val", store.splits)
    monkeypatch.setattr("rdcache.distillation.source.require_unchanged", lambda *both: None)
    with pytest.raises(UsageError, match="no test images"):
        distill(store, method="none", **options(epochs=1))


def test_wrong_usage_is_one_sentence_and_leaves_nothing(
    tiny: Tiny, options: Options, tmp_path: Path
) -> None:
    refused: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (UsageError, "a batch of 64 is larger than the training set", {"batch_size": 64}),
        (UsageError, "a batch of 3 is too small", {"batch_size": 3}),
        (UnknownNameError, "no tap in this store named 's3'", {"tap": "s3"}),
        (UsageError, "taps are to be named once each", {"tap": "s4,"}),
        (UsageError, "taps are to be named once each", {"tap": "s4, s4"}),
        (UnknownNameError, "no student named 'shufflenot'", {"student": "shufflenot"}),
        (UnknownNameError, "no method named 'rdd'", {"method": "rdd"}),
        (UnknownNameError, "no option of rd named 'epoch'", {"epoch": 3}),
        (UsageError, "lr: input should be greater than 0", {"lr": -1.0}),
        (UsageError, "there is no device 'gpu' here", {"device": "gpu"}),
        (UsageError, "distill trains one student", {"seeds": (0, 1)}),
        (UsageError, r"one student[\s\S]*distill_many", {"student": "resnet18,mobilenet"}),
    ]
    for kind, sentence, changes in refused:
        with pytest.raises(kind, match=sentence):
            distill(tiny.store, **options(**changes))
    assert not (tmp_path / "runs").exists()


def test_a_diverging_training_says_so(tiny: Tiny, options: Options, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"diverged|NaN"):
        distill(tiny.store, method="none", **options(lr=1e30, clip=0.0, epochs=3))
    assert not list((tmp_path / "runs").rglob("checkpoint*"))
    assert not list((tmp_path / "runs").rglob("result.json"))


def test_folders_that_hold_no_finished_run_are_refused(
    tiny: Tiny, options: Options, tmp_path: Path
) -> None:
    with pytest.raises(RunNotFoundError, match="no run in this folder"):
        load_run(tmp_path)
    run = distill(tiny.store, method="none", **options(epochs=1))
    with pytest.raises(RunNotFoundError, match=r"several runs[\s\S]*seed0"):
        load_run(run.path.parent)


def test_history_and_result_are_plain_json_without_nan(tiny: Tiny, options: Options) -> None:
    run = distill(tiny.store, **options(epochs=1))
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    for text in (*lines, (run.path / "result.json").read_text()):
        json.loads(text, parse_constant=pytest.fail)
