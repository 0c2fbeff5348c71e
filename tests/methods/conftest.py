"""A context, a batch and a student's output of invented numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from rdcache.methods import CachedBatch, ChannelStatistics, MethodContext, task_loss
from rdcache.models import StudentOutput
from rdcache.store import TapSpec

FEATURE_DIM, CLASSES, BATCH = 12, 3, 8
TAPS = {
    "s3": TapSpec("s3", "map2d", (16, 6, 6)),
    "s4": TapSpec("s4", "map2d", (16, 3, 3)),
    "tokens": TapSpec("tokens", "tokens", (9, 16)),
    "pooled": TapSpec("pooled", "vector", (16,)),
}
STAGES = {"s3": (10, 16), "s4_pre": (6, 32), "s4": (FEATURE_DIM, 32)}
SIDES = {"s3": 4, "s4_pre": 2, "s4": 2}  # of the student's maps


class ChainDouble(nn.Module):
    """What is behind the maps of `student_output`: enough of a student to resume from them."""

    injectable = ("s3", "s4")

    def __init__(self, classifier: nn.Linear) -> None:
        super().__init__()
        self.backbone = SimpleNamespace(chain=tuple(STAGES))
        self.behind = nn.ModuleDict(
            {
                "s3": nn.Sequential(nn.Conv2d(10, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU()),
                "s4_pre": nn.Sequential(nn.Conv2d(6, FEATURE_DIM, 1), nn.BatchNorm2d(FEATURE_DIM)),
            }
        )
        self.classifier = classifier

    def advance(self, stage: str, maps: torch.Tensor) -> torch.Tensor:
        advanced: torch.Tensor = self.behind[stage](maps)
        return advanced

    def conclude(self, maps: Mapping[str, torch.Tensor]) -> StudentOutput:
        features = maps["s4"].mean((2, 3))
        return StudentOutput(features, self.classifier(features), dict(maps))


@pytest.fixture
def context() -> Callable[..., MethodContext]:
    def build(**changes: Any) -> MethodContext:
        torch.manual_seed(0)
        values: dict[str, Any] = {
            "taps": TAPS,
            "default_tap": "s4",
            "feature_dim": FEATURE_DIM,
            "student_stages": STAGES,
            "num_classes": CLASSES,
            "classifier": nn.Linear(FEATURE_DIM, CLASSES),
            "task_loss": task_loss("multiclass", [4, 4, 4]),
            "statistics": lambda name: ChannelStatistics(torch.zeros(16), torch.ones(16)),
            "probe": lambda name: (torch.randn(CLASSES, 16), torch.randn(CLASSES)),
            "labels": torch.arange(BATCH) % CLASSES,
            "folds": lambda count: torch.arange(BATCH) % count,
            "views": 4,
            "epochs": 10,
            "batch_size": BATCH,
        }
        values |= changes
        with torch.random.fork_rng():
            values.setdefault("student", ChainDouble(values["classifier"]))
        return MethodContext(**values)

    return build


@pytest.fixture
def batch() -> CachedBatch:
    generator = torch.Generator().manual_seed(1)
    taps = {
        name: torch.randn(BATCH, *tap.shape, generator=generator).half()
        for name, tap in TAPS.items()
    }
    return CachedBatch(torch.arange(BATCH), taps, torch.arange(BATCH) % CLASSES)


@pytest.fixture
def student_output() -> Callable[[MethodContext], StudentOutput]:
    """The output of a student whose features are leaves and whose classifier is the context's."""

    def compute(context: MethodContext) -> StudentOutput:
        generator = torch.Generator().manual_seed(2)
        features = torch.randn(BATCH, FEATURE_DIM, generator=generator, requires_grad=True)
        stages = {
            name: torch.randn(BATCH, channels, SIDES[name], SIDES[name], generator=generator)
            for name, (channels, _) in STAGES.items()
        }
        for maps in stages.values():
            maps.requires_grad_()
        return StudentOutput(features, context.classifier(features), stages)

    return compute
