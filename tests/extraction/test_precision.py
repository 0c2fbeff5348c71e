"""`--precision auto` is settled before the fingerprint, by measuring once, and says why."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from small_inputs import Pooling
from torch import nn

from rdcache.cli import cli
from rdcache.extraction import ExtractConfig, ExtractionPlan, plan_extraction, run_extraction
from rdcache.extraction import precision as precision_module
from rdcache.extraction.precision import arithmetic, chosen_precision
from rdcache.models import load_teacher
from rdcache.probing import MARGIN, Choice
from rdcache.store import StoreWriter

Script = Callable[[nn.Module], str]


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What the probe is to find, in seconds."""
    seconds = {"float32": 3.0, "bfloat16": 1.0}

    def invented(key: Mapping[str, object], candidates: Mapping[str, object]) -> Choice:
        assert set(candidates) == set(seconds)
        worth = seconds["float32"] >= MARGIN * seconds["bfloat16"]
        return Choice("bfloat16" if worth else "float32", dict(seconds), cached=False)

    monkeypatch.setattr(precision_module, "fastest", invented)
    return seconds


def planned(teacher: str, folder: Path, precision: str) -> ExtractionPlan:
    return plan_extraction(
        ExtractConfig(
            teacher=teacher,
            dataset=f"folder:{folder}",
            views="clean",
            precision=precision,  # type: ignore[arg-type]
            device="cpu",
        )
    )


@pytest.mark.parametrize("faster", ["float32", "bfloat16"])
def test_auto_is_the_store_of_the_precision_that_it_comes_to(
    script: Script, few: Path, measured: dict[str, float], faster: str
) -> None:
    measured[faster] = 0.5
    teacher = script(Pooling(1.0))
    plan = planned(teacher, few, "auto")
    assert plan.config.precision == faster
    assert plan.fingerprint == planned(teacher, few, faster).fingerprint
    provenance = run_extraction(plan).store.manifest["provenance"]
    assert provenance["precision"] == faster
    assert "times as fast as float32 here" in provenance["why_precision"]
    assert provenance["layout"] == "contiguous_format"


def test_a_reason_does_not_contradict_the_choice(
    script: Script, few: Path, measured: dict[str, float]
) -> None:
    measured["float32"] = 1.19
    plan = planned(script(Pooling(1.0)), few, "auto")
    assert plan.config.precision == "float32"
    assert str(plan.why_precision).startswith(
        "bfloat16 is 1.19 times as fast as float32 here, less"
    )


@pytest.mark.parametrize("finished", [True, False])
def test_what_is_begun_goes_on_in_its_precision_whatever_is_measured_now(
    script: Script, few: Path, measured: dict[str, float], finished: bool
) -> None:
    teacher = script(Pooling(1.0))
    first = run_extraction(planned(teacher, few, "auto")).store
    assert first.manifest["provenance"]["precision"] == "bfloat16"
    if not finished:
        StoreWriter(first.location, dict(first.manifest)).reopen()
    measured["float32"] = 0.5
    again = planned(teacher, few, "auto")
    assert again.location == first.location
    assert again.why_precision == f"a store of it is {'complete' if finished else 'begun'} here"


def test_a_complete_store_is_preferred_to_one_that_is_begun(
    script: Script, few: Path, measured: dict[str, float]
) -> None:
    teacher = script(Pooling(1.0))
    run_extraction(planned(teacher, few, "bfloat16"))
    begun = run_extraction(planned(teacher, few, "float32")).store
    StoreWriter(begun.location, dict(begun.manifest)).reopen()
    measured["float32"] = 0.5
    assert planned(teacher, few, "auto").config.precision == "bfloat16"


def test_what_was_asked_for_is_not_measured(script: Script, few: Path, cache: Path) -> None:
    plan = planned(script(Pooling(1.0)), few, "float32")
    assert plan.why_precision is None
    assert not (cache / "probes").exists()


def test_a_teacher_is_timed_once_on_a_cpu(script: Script, few: Path, cache: Path) -> None:
    teacher = script(Pooling(1.0))
    first = planned(teacher, few, "auto")
    (probe,) = (cache / "probes").iterdir()
    key = json.loads(probe.read_text())["question"]
    assert (key["size"], key["taps"], key["machine"]["threads"]) == (224, ["out0"], 1)
    again = planned(teacher, few, "auto")
    assert str(again.why_precision).endswith("measured earlier")
    assert again.fingerprint == first.fingerprint


@pytest.mark.parametrize(("native", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_a_gpu_is_not_timed(
    script: Script, monkeypatch: pytest.MonkeyPatch, native: bool, expected: str
) -> None:
    teacher = load_teacher(script(Pooling(1.0)), device="cpu")
    teacher.device = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert chosen_precision(teacher, ["out0"])[0] == expected


@pytest.mark.usefixtures("measured")
def test_a_dry_run_says_what_auto_comes_to_and_why(script: Script, few: Path) -> None:
    arguments = ["extract", "--teacher", script(Pooling(1.0)), "--dataset", f"folder:{few}"]
    said = CliRunner().invoke(cli, [*arguments, "--precision", "auto", "--dry-run"])
    assert said.exit_code == 0, said.output
    assert "bfloat16 (bfloat16 is 3 times as fast as float32 here" in " ".join(said.output.split())


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_float32_is_not_rounded_to_tf32_by_a_gpus_convolutions(precision: str) -> None:
    before = torch.backends.cudnn.allow_tf32
    with arithmetic(torch.device("cpu"), precision):
        assert not torch.backends.cudnn.allow_tf32
        assert torch.is_autocast_enabled("cpu") == (precision == "bfloat16")
    assert torch.backends.cudnn.allow_tf32 == before
    with pytest.raises(KeyError), arithmetic(torch.device("cpu"), precision):
        raise KeyError
    assert torch.backends.cudnn.allow_tf32 == before
