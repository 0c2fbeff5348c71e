"""What holds for every method: half precision changes little, a saved one goes on as it was."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rdcache.methods import (
    CachedBatch,
    Method,
    MethodContext,
    TrainingProgress,
    create_method,
    list_methods,
)
from rdcache.models import StudentOutput

BuildContext = Callable[..., MethodContext]
EVERY = pytest.mark.parametrize("name", [card.name for card in list_methods()])
OPTIONS: dict[str, dict[str, object]] = {
    "rd": {"width": 8, "teacher_ema": 0.9, "cka_target": "reprogrammed"},
    "rd-paper": {"width": 8},
    "scalekd": {"width": 64},
    "crd": {"negatives": 4},  # fewer than samples: they are drawn
}
PROGRESS = TrainingProgress(epoch=3, epochs=10, step=1, steps=2)


def build(name: str, setting: MethodContext, seed: int) -> Method:
    torch.manual_seed(seed)
    method = create_method(name, OPTIONS.get(name, {}), setting)
    method.begin_stage("student")
    return method.train()


def output(setting: MethodContext, dtype: torch.dtype) -> StudentOutput:
    """Of a student that classifies the mean of its last map, as some methods need."""
    generator = torch.Generator().manual_seed(2)
    sides = {"s3": 4, "s4_pre": 2, "s4": 2}
    stages = {
        stage: torch.randn(8, channels, sides[stage], sides[stage], generator=generator).to(dtype)
        for stage, (channels, _) in setting.student_stages.items()
    }
    features = stages["s4"].mean((2, 3))
    return StudentOutput(features, setting.classifier(features), stages)


def terms_of(method: Method, batch: CachedBatch, student: StudentOutput) -> dict[str, float]:
    torch.manual_seed(5)
    return {name: term.item() for name, term in method(batch, student, PROGRESS).items()}


@EVERY
def test_terms_under_autocast_are_those_of_float32_up_to_rounding(
    context: BuildContext, batch: CachedBatch, name: str
) -> None:
    setting = context()
    expected = terms_of(build(name, setting, 3), batch, output(setting, torch.float32))
    method = build(name, setting, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = terms_of(method, batch, output(setting, torch.bfloat16))
    assert found == pytest.approx(expected, rel=0.05)


@EVERY
def test_a_method_that_was_saved_and_loaded_goes_on_with_the_same_terms(
    context: BuildContext, batch: CachedBatch, name: str
) -> None:
    setting = context()
    method = build(name, setting, 3)
    for _ in range(2):
        torch.stack(list(method(batch, output(setting, torch.float32), PROGRESS).values())).sum()
        with torch.no_grad():
            for parameter in set(method.trainable_parameters("student")):
                parameter.mul_(0.9)
        method.after_step()
    saved = {
        key: value.clone() if isinstance(value, torch.Tensor) else dict(value)
        for key, value in method.state_dict().items()
    }
    classifier = {key: value.clone() for key, value in setting.classifier.state_dict().items()}
    expected = terms_of(method, batch, output(setting, torch.float32))
    other = context()
    other.classifier.load_state_dict(classifier)
    loaded = build(name, other, 4)
    loaded.load_state_dict(saved)
    assert terms_of(loaded, batch, output(other, torch.float32)) == expected
