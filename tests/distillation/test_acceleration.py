"""Precision and compilation are chosen for a reason, and the reason is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rdcache.distillation import DistillConfig, distill_many
from rdcache.distillation.acceleration import choose_amp, compiled
from rdcache.errors import UsageError
from rdcache.models import create_student
from rdcache.probing import Choice

from .conftest import Tiny

CPU = torch.device("cpu")
LONG = 10_000  # steps


def test_what_is_asked_for_is_not_probed() -> None:
    assert choose_amp(DistillConfig(amp="bf16"), LONG, CPU) == ("bf16", "as asked for")
    assert choose_amp(DistillConfig(amp="off"), LONG, CPU) == ("off", "as asked for")


def test_a_short_training_is_not_worth_a_probe() -> None:
    amp, why = choose_amp(DistillConfig(), 10, CPU)
    assert (amp, "too few" in why) == ("off", True)


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
    assert "ms" in why
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
    assert run.config["config"]["amp"] == "off"
    (other,) = distill_many(tiny.store, [config.model_copy(update={"amp": "bf16"})])
    assert other.path.parent != run.path.parent


def test_on_a_cpu_a_student_is_compiled_only_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    student = create_student("shufflenet-x0.5", 2)
    for choice in ("auto", "off"):
        assert compiled(student, DistillConfig(compile=choice), LONG, CPU) is student
    monkeypatch.setattr(
        "rdcache.distillation.acceleration._why_nothing_compiles", lambda device: "no g++"
    )
    with pytest.raises(UsageError, match=r"cannot be compiled[\s\S]*no g\+\+[\s\S]*--compile off"):
        compiled(student, DistillConfig(compile="on"), LONG, CPU)
