"""A teacher is adapted, becomes a teacher, and goes through the two phases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from small_inputs import Pooling, save_image
from torch import nn

import rdcache
from rdcache.adaptation import AdaptConfig, AdaptRun, adapt, adapt_seeds
from rdcache.adaptation.training import AdaptTrainer
from rdcache.data import cut_view, load_dataset
from rdcache.distillation import choose_store
from rdcache.errors import (
    RunNotFoundError,
    TrainingError,
    UsageError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from rdcache.extraction.live_taps import load_live_taps
from rdcache.models import load_teacher
from rdcache.models.adapters import FILE
from rdcache.report.costs import CostConfig, cost_of_teacher
from rdcache.store import Store
from rdcache.transferability.candidates import find_candidates
from rdcache.transferability.config import RankConfig

VIT = "timm:test_vit"
QUICK: dict[str, Any] = {
    "weights": "random",
    "epochs": 2,
    "batch_size": 8,
    "views": "2",
    "device": "cpu",
    "checkpoint_seconds": 0,  # one after every epoch
}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two classes of ten small images, told apart by brightness."""
    folder = tmp_path_factory.mktemp("data") / "images"
    random = np.random.default_rng(0)
    for name, offset in (("benign", 20), ("malignant", 160)):
        for number in range(10):
            noise = random.integers(0, 60, (24, 28, 3)) + offset
            save_image(folder / name / f"{number}.png", noise.astype(np.uint8))
    return f"folder:{folder}"


@pytest.fixture(scope="module")
def lora(images: str, tmp_path_factory: pytest.TempPathFactory) -> AdaptRun:
    """A finished run."""
    return adapt(VIT, images, method="lora", out=tmp_path_factory.mktemp("runs"), **QUICK)


@pytest.fixture
def options(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def build(**changes: Any) -> dict[str, Any]:
        return {**QUICK, "out": tmp_path / "runs", **changes}

    return build


Options = Callable[..., dict[str, Any]]


def test_a_run_says_what_was_learned_from_what(lora: AdaptRun, images: str) -> None:
    names = {path.name for path in lora.path.iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", FILE, "predictions.csv", "result.json"}
    assert lora.result["adapted"]["parameters"] == {"adapter": 6144, "head": 130, "base": 0}
    assert (lora.path / FILE).stat().st_size < 40_000
    assert set(load_file(lora.path / FILE)) >= {"head.weight", "adapter.changes.0.query.up"}
    assert [line["epoch"] for line in lora.history] == [0, 1]
    assert 0 <= lora.metrics["accuracy"] <= 1
    dataset = load_dataset(images)
    tested = (lora.path / "predictions.csv").read_text().splitlines()[1:]
    assert {row.split(",")[0] for row in tested} == set(dataset.uids[dataset.splits == "test"])
    recorded = yaml.safe_load((lora.path / "config.yaml").read_text())
    assert recorded["config"]["lr"] == 1e-3, "the method's own"


def test_the_same_again_does_nothing(lora: AdaptRun, images: str) -> None:
    again = adapt(VIT, images, method="lora", out=lora.path.parents[1], **QUICK)
    assert (again.path, again.status) == (lora.path, "done before")


def test_an_adapted_teacher_goes_through_both_phases(
    lora: AdaptRun, images: str, tmp_path: Path
) -> None:
    teacher = lora.load_teacher()
    assert teacher.name.startswith("adapted:lora-timm-test_vit-folder-images-")
    assert teacher.taps["logits"].shape == (2,)
    store = rdcache.extract(
        teacher=lora.teacher_name, dataset=images, views="2", dtype=("float32",), device="cpu"
    )
    recorded = store.manifest["teacher"]
    assert recorded["name"] == teacher.name
    assert recorded["logits_classes"] == ["benign", "malignant"]
    assert recorded["adapted"]["method"] == "lora"
    assert str(lora.path) not in json.dumps(store.manifest), "no folder of this machine"
    # What phase 1 computes on the test images is what the run has evaluated.
    test = np.flatnonzero(store.splits == "test").tolist()
    stored = store.read(test, 0, ["logits"])["logits"].double().softmax(1)
    rows = (lora.path / "predictions.csv").read_text().splitlines()[1:]
    said = {row.split(",")[0]: [float(p) for p in row.split(",")[3:]] for row in rows}
    expected = torch.tensor([said[str(store.uids[sample])] for sample in test])
    torch.testing.assert_close(stored, expected.double(), rtol=0, atol=2e-3)
    assert choose_store(teacher=lora.teacher_name).location == store.location
    assert_it_is_found_by_its_run(lora, store)
    run = rdcache.distill(
        store,
        student="shufflenet-x0.5",
        method="kd",
        teacher_head="own",
        dataset=images,
        image_size=32,
        batch_size=8,
        epochs=1,
        device="cpu",
        out=tmp_path,
    )
    assert run.result["teacher"]["name"] == teacher.name


def assert_it_is_found_by_its_run(lora: AdaptRun, store: Store) -> None:
    """Whoever is given `adapted:RUN` knows that the store is of this teacher."""
    (live,) = load_live_taps(store, ["torchscript:else.pt", lora.teacher_name])
    recorded = store.manifest["teacher"]["name"]
    assert live.teacher.name == recorded
    with pytest.raises(UsageError, match=r"does not know[\s\S]*adapted:RUN"):
        load_live_taps(store)
    config = RankConfig(
        dataset=store.manifest["dataset"]["name"], teachers=(lora.teacher_name,), taps=("pooled",)
    )
    (candidate,), _ = find_candidates(config)
    assert candidate.teacher == recorded
    untimed = CostConfig(batch=(), classes=2)
    adapted, base = (cost_of_teacher(it, untimed, []) for it in (lora.teacher_name, VIT))
    assert adapted.parameters == base.parameters, "what LoRA learnt is in the weights"
    assert adapted.with_classifier == base.with_classifier


def test_an_adapted_teacher_is_not_run_on_other_splits_of_its_dataset(
    lora: AdaptRun, images: str
) -> None:
    with pytest.raises(UsageError, match=r"other splits[\s\S]*adapted on"):
        rdcache.extract(teacher=lora.teacher_name, dataset=images, seed=1, device="cpu")


@pytest.mark.parametrize("method", ["adaptformer", "linear-probe", "vqt"])
def test_what_is_loaded_is_what_was_trained(method: str, images: str, options: Options) -> None:
    # Trained in bfloat16, and evaluated as it will be run.
    run = adapt(VIT, images, method=method, **options(epochs=1, amp="bf16"))
    teacher = run.load_teacher()
    assert teacher.weights.sha256 == run.result["adapted"]["sha256"]
    dataset = load_dataset(images)
    samples = np.flatnonzero(dataset.splits == "test")
    whole = np.array([0.0, 0, 1, 1, 0, 0])
    cuts = [cut_view(dataset.decode(it), whole, 160, "bicubic") for it in samples.tolist()]
    batch = teacher.preprocessing.normalise(torch.from_numpy(np.stack(cuts)))
    outputs = teacher.forward_taps(batch, list(teacher.taps))
    assert {name: tuple(value.shape[1:]) for name, value in outputs.items()} == {
        name: tap.shape for name, tap in teacher.taps.items()
    }
    rows = (run.path / "predictions.csv").read_text().splitlines()[1:]
    expected = torch.tensor([[float(p) for p in row.split(",")[3:]] for row in rows])
    torch.testing.assert_close(outputs["logits"].softmax(1), expected, rtol=0, atol=1e-4)


class InterruptionError(Exception):
    pass


@pytest.mark.parametrize(("teacher", "method"), [(VIT, "lpt"), ("timm:test_efficientnet", "full")])
def test_a_run_that_was_interrupted_goes_on_to_the_same_numbers(
    teacher: str, method: str, images: str, options: Options, tmp_path: Path
) -> None:
    chosen = options(method=method, epochs=3 if method == "lpt" else 2)
    whole = adapt(teacher, images, **{**chosen, "out": tmp_path / "whole"})

    def stop(done: int, total: int, note: str = "") -> None:
        if note and done == total:  # of the last epoch of the last stage
            raise InterruptionError

    with pytest.raises(InterruptionError):
        adapt(teacher, images, on_progress=stop, **chosen)
    with pytest.raises(UsageError, match=r"interrupted[\s\S]*--resume"):
        adapt(teacher, images, **chosen)
    resumed = adapt(teacher, images, resume=True, **chosen)
    assert resumed.status == "resumed"
    assert not (resumed.path / "checkpoint.safetensors").exists()
    mine, theirs = (load_file(run.path / FILE) for run in (resumed, whole))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    numbers = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in run.history]
        for run in (resumed, whole)
    ]
    assert numbers[0] == numbers[1]
    if method == "full":
        assert any("running_mean" in name for name in mine), "statistics are learned too"
        changed = {name: value for name, value in mine.items() if name.startswith("base.")}
        loaded = resumed.load_teacher().network.base.state_dict()
        assert all(torch.equal(loaded[n.removeprefix("base.")], v) for n, v in changed.items())
    else:
        assert [line["stage"] for line in whole.history] == ["shared", "groups", "groups"]
        assert resumed.result["selected_epoch"] >= 1, "an epoch of the last stage"


def test_a_seed_that_diverges_is_set_aside_and_not_trained_again(
    images: str, options: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverging(self: AdaptTrainer, line: object, sums: object) -> None:
        if self.seed == 0 and self.epoch == 1:  # there is a checkpoint then
            raise TrainingError("the loss is not a finite number.", terms="ce")

    monkeypatch.setattr(AdaptTrainer, "_require_finite", diverging)
    chosen = options(method="linear-probe", seeds=(0, 1))
    config = AdaptConfig(teacher=VIT, dataset=images, **chosen)
    with pytest.raises(TrainingError, match=r"by linear-probe, seed 0\.[\s\S]*others +1 finished"):
        adapt_seeds(config)
    (record,) = chosen["out"].rglob("diverged.json")
    assert {it.name for it in record.parent.iterdir()} == {
        "config.yaml",
        "metrics.jsonl",
        "diverged.json",
    }
    (result,) = chosen["out"].rglob("result.json")
    assert (record.parent.name, result.parent.name) == ("seed0", "seed1")

    monkeypatch.undo()
    with pytest.raises(TrainingError, match=r"seed 0[\s\S]*record.*--overwrite trains again"):
        adapt_seeds(config, resume=True)
    assert [run.status for run in adapt_seeds(config)] == ["trained", "done before"]
    assert not record.exists()


def test_a_black_box_is_probed_and_named_again_when_it_is_loaded(
    script: Callable[[nn.Module], str], images: str, options: Options
) -> None:
    name = script(Pooling(2.0))
    run = adapt(name, images, method="linear-probe", **options(weights=None, epochs=1))
    with pytest.raises(UsageError, match=r"a run does not know[\s\S]*--weights FILE"):
        run.load_teacher()
    teacher = run.load_teacher(weights=name.partition(":")[2])
    assert {tap: spec.shape for tap, spec in teacher.taps.items()} == {
        "out0": (3, 4, 4),
        "out1": (3,),
        "logits": (2,),
    }
    with pytest.raises(WeightsMismatchError, match="not the ones that were adapted"):
        run.load_teacher(weights=script(Pooling(3.0)).partition(":")[2])


def test_other_weights_than_the_adapted_ones_are_refused(lora: AdaptRun, tmp_path: Path) -> None:
    other = load_teacher(VIT, "random").network.model.state_dict()
    other["norm.bias"] = other["norm.bias"] + 1
    save_file(other, tmp_path / "other.safetensors")
    with pytest.raises(WeightsMismatchError, match=r"not the ones that were adapted[\s\S]*sha256"):
        lora.load_teacher(weights=tmp_path / "other.safetensors")


def test_what_is_no_adaptation_is_refused(lora: AdaptRun, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match=r"no finished adaptation[\s\S]*rdcache adapt"):
        load_teacher(f"adapted:{tmp_path}")
    save_file({"head.weight": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(WeightsMismatchError, match="not an adaptation"):
        load_teacher(f"adapted:{tmp_path}")
    with pytest.raises(UsageError, match="cannot be adapted again"):
        adapt(lora.teacher_name, "phantom")


def test_a_delta_of_other_tensors_is_refused(lora: AdaptRun, tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(lora.path / FILE, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(lora.path / FILE)
    smaller = {name: value for name, value in tensors.items() if name != "head.bias"}
    save_file(smaller, tmp_path / FILE, metadata)
    with pytest.raises(WeightsMismatchError, match=r"does not fit[\s\S]*head.bias"):
        load_teacher(f"adapted:{tmp_path}")
    greedy = {key: it.replace('"rank": 4', '"rank": 1000000000') for key, it in metadata.items()}
    assert greedy != metadata
    save_file(tensors, tmp_path / FILE, greedy)
    with pytest.raises(WeightsMismatchError, match=r"does not fit[\s\S]*adapter"):
        load_teacher(f"adapted:{tmp_path}")
    save_file(tensors | {"base.model.norm.bias": torch.ones(64)}, tmp_path / FILE, metadata)
    with pytest.raises(WeightsMismatchError, match=r"does not fit[\s\S]*base.model.norm.bias"):
        load_teacher(f"adapted:{tmp_path}")


def test_a_run_that_is_not_finished_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunNotFoundError):
        _ = AdaptRun(tmp_path).metrics


def test_the_command_prints_one_json_object(
    lora: AdaptRun, images: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from rdcache.cli import run_command_line

    given = {**QUICK, "out": lora.path.parents[1]}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()] + ["--json"]
    code = run_command_line(["adapt", "--teacher", VIT, "--dataset", images, *flags])
    assert code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["runs"][0]["teacher"] == f"adapted:{lora.path}"
    assert said["summary"]["accuracy"]["n"] == 1
    assert run_command_line(["adapt", "--teacher", VIT, "--dataset", images, "--method", "x"]) == 2
