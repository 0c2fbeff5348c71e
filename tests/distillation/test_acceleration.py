"""Precision and compilation are chosen for a reason, and the reason is told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rdcache.distillation import DistillConfig, distill, distill_many
from rdcache.distillation.acceleration import (
    MOST_PROGRAMS,
    CompiledStudent,
    choose_amp,
    compiled,
    why_nothing_compiles,
)
from rdcache.errors import UsageError
from rdcache.models import StudentOutput, create_student
from rdcache.probing import Choice

from .conftest import Tiny

CPU = torch.device("cpu")
LONG = 10_000  # steps


def ignored(how: str) -> None:
    """Nobody asks whether a student turned out not to compile."""


def test_what_is_asked_for_is_not_probed() -> None:
    assert choose_amp(DistillConfig(amp="bf16"), LONG, CPU) == ("bf16", "as asked for")
    assert choose_amp(DistillConfig(amp="off"), LONG, CPU) == ("off", "as asked for")


def test_a_short_training_is_not_worth_a_probe() -> None:
    amp, why = choose_amp(DistillConfig(), 10, CPU)
    assert (amp, "too few" in why) == ("off", True)


@pytest.mark.parametrize(("native", "amp"), [(True, "bf16"), (False, "off")])
def test_a_gpu_that_would_only_emulate_bfloat16_is_spared_it(
    monkeypatch: pytest.MonkeyPatch, native: bool, amp: str
) -> None:
    asked: list[torch.device] = []

    def of_device(device: torch.device) -> contextlib.AbstractContextManager[None]:
        asked.append(device)
        return contextlib.nullcontext()

    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "device", of_device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert choose_amp(DistillConfig(), LONG, torch.device("cuda:1"))[0] == amp
    assert asked == [torch.device("cuda:1")]


def test_other_devices_are_not_told_that_their_steps_are_too_few() -> None:
    found = choose_amp(DistillConfig(), LONG, torch.device("mps"))
    assert found == ("off", "bfloat16 is not tried on mps")


@pytest.mark.parametrize("faster", ["off", "bf16"])
def test_a_long_training_on_a_cpu_takes_what_the_probe_says_and_leaves_the_generator_alone(
    monkeypatch: pytest.MonkeyPatch, faster: str
) -> None:
    asked: list[dict[str, Any]] = []

    def fastest(key: dict[str, Any], candidates: dict[str, Callable[[], None]]) -> Choice:
        asked.append(key)
        for call in candidates.values():
            call()
        return Choice(faster, {"off": 1.0, "bf16": 2.0}, cached=False)

    monkeypatch.setattr("rdcache.distillation.acceleration.fastest", fastest)
    config = DistillConfig(student="shufflenet-x0.5", image_size=32, batch_size=4)
    before = torch.get_rng_state()
    amp, why = choose_amp(config, LONG, CPU)
    assert amp == faster
    assert why == "a step takes 1000.0 ms in float32, 2000.0 ms in bfloat16, measured now"
    assert torch.equal(torch.get_rng_state(), before)
    (key,) = asked
    assert (key["student"], key["batch"], key["size"]) == ("shufflenet-x0.5", 4, 32)


def test_the_choice_is_part_of_what_identifies_a_run_and_is_told(
    tiny: Tiny, options: Callable[..., dict[str, Any]]
) -> None:
    notes: list[str] = []
    config = DistillConfig(**options(method="none", epochs=1))
    (run,) = distill_many(tiny.store, [config], on_note=notes.append)
    assert any("precision of shufflenet-x0.5: float32" in note for note in notes)
    assert any("compilation of shufflenet-x0.5: off" in note for note in notes)
    assert not any(note.startswith("taps") for note in notes), "none are read"
    assert run.config["config"]["amp"] == "off"
    (other,) = distill_many(tiny.store, [config.model_copy(update={"amp": "bf16"})])
    assert other.path.parent != run.path.parent


def test_on_a_cpu_a_student_is_compiled_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    student = create_student("shufflenet-x0.5", 2)
    for choice in ("auto", "off"):
        forward, why = compiled(student, DistillConfig(compile=choice), LONG, CPU, ignored)
        assert forward is student
        assert why.startswith("off (")
    monkeypatch.setattr(
        "rdcache.distillation.acceleration.why_nothing_compiles", lambda device: "no g++"
    )
    with pytest.raises(UsageError, match=r"cannot be compiled[\s\S]*no g\+\+[\s\S]*--compile off"):
        compiled(student, DistillConfig(compile="on"), LONG, CPU, ignored)


def test_a_compiler_that_fails_without_a_word_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError

    monkeypatch.setattr(torch, "compile", broken)
    assert why_nothing_compiles(CPU) == "NotImplementedError"


def test_a_student_that_does_not_compile_after_all_is_run_as_it_is() -> None:
    student, images = create_student("shufflenet-x0.5", 2).eval(), torch.randn(2, 3, 32, 32)
    tried: list[int] = []

    def failing(*arguments: Any, **options: Any) -> StudentOutput:
        tried.append(1)
        raise torch._dynamo.exc.TorchDynamoException("no such operator")

    told: list[str] = []
    forward = CompiledStudent(student, failing, told.append)
    for _ in range(2):
        assert torch.equal(forward(images).logits, student(images).logits)
    assert told == ["off (no such operator)"]
    assert len(tried) == 1
    with pytest.raises(UsageError, match=r"cannot be compiled[\s\S]*no such operator"):
        CompiledStudent(student, failing, None)(images)


def test_more_students_can_be_compiled_than_pytorch_would() -> None:
    if (lacks := why_nothing_compiles(CPU)) is not None:
        pytest.skip(f"nothing compiles here: {lacks}")
    student = create_student("shufflenet-x0.5", 2)
    with torch._dynamo.config.patch(cache_size_limit=8):
        compiled(student, DistillConfig(compile="on"), LONG, CPU, ignored)
        assert torch._dynamo.config.cache_size_limit == MOST_PROGRAMS


def test_a_compiled_student_learns_what_it_would_have_learned(
    tiny: Tiny, options: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    if (lacks := why_nothing_compiles(CPU)) is not None:
        pytest.skip(f"nothing compiles here: {lacks}")
    # At larger rates AdamW turns the last bits of small gradients into whole steps.
    chosen = options(student="timm:test_resnet.r160_in1k", method="none", epochs=1, lr=1e-4)
    plain, fast = (
        distill(tiny.store, **{**chosen, "compile": choice, "out": tmp_path / choice})
        for choice in ("off", "on")
    )
    assert fast.result["environment"]["compiled"] == "on (as asked for)"
    for one, other in zip(plain.history, fast.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-3)
