"""A small student, taps and a batch of any task, for the tests of DRD."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rdcache.methods import (
    CachedBatch,
    ChannelStatistics,
    Method,
    MethodContext,
    TrainingProgress,
    create_method,
    task_loss,
)
from rdcache.methods.drd import DeepReprogrammingDistillation
from rdcache.models import StudentOutput
from rdcache.store import TapSpec
from tests.methods.small_students import SmallClassifier, SmallStudent, SmallUNet

CLASSES, SIDE, CHANNELS = 3, 32, 5
TASKS = ("multiclass", "multilabel", "segmentation")
EVERY_TASK = pytest.mark.parametrize("task", TASKS)
IMAGES_AND_VOLUMES = pytest.mark.parametrize("dimensions", [2, 3])
NORMS = pytest.mark.parametrize("norms", ["batch", "split", "shared"])
START = TrainingProgress(epoch=0, epochs=10)
LATER = TrainingProgress(epoch=4, epochs=10)


class Case:
    """A student, a store's taps and a batch for a task."""

    def __init__(
        self, task: str = "multiclass", dimensions: int = 2, batch: int = 8, **changes: Any
    ) -> None:
        torch.manual_seed(0)
        kind = SmallUNet if task == "segmentation" else SmallClassifier
        self.student: SmallStudent = kind(CLASSES, dimensions)
        space = (SIDE,) * dimensions
        self.images = torch.randn(batch, 3, *space)
        taps = {
            f"s{stage}": TapSpec(
                f"s{stage}",
                "map3d" if dimensions == 3 else "map2d",
                (CHANNELS, *(side,) * dimensions),
            )
            for stage, side in ((1, 6), (2, 4), (3, 3))
        }
        target = torch.arange(batch) % CLASSES
        if task == "multilabel":
            target = (torch.rand(batch, CLASSES) > 0.5).float()
        elif task == "segmentation":
            target = torch.randint(0, CLASSES, (batch, *space))
        self.batch = CachedBatch(
            torch.arange(batch),
            {name: torch.randn(batch, *tap.shape).half() for name, tap in taps.items()},
            target,
        )
        values: dict[str, Any] = {
            "taps": taps,
            "default_tap": "s3",
            "feature_dim": self.student.feature_dim,
            "student_stages": self.student.stages,
            "num_classes": CLASSES,
            "classifier": self.student.classifier,
            "task_loss": task_loss(task, [4, 4, 4]),
            "statistics": lambda name: ChannelStatistics(
                torch.zeros(CHANNELS), torch.ones(CHANNELS)
            ),
            "probe": lambda name: (torch.randn(CLASSES, CHANNELS), torch.randn(CLASSES)),
            "labels": torch.arange(batch) % CLASSES,
            "folds": lambda count: torch.arange(batch) % count,
            "views": 4,
            "epochs": 10,
            "batch_size": batch,
            "student": self.student,
            "task": task,
            "dimensions": dimensions,
        }
        self.context = MethodContext(**{**values, **changes})

    def method(self, name: str = "drd", **options: Any) -> Method:
        """One of few channels, of the same initial weights each time, ready to train a student."""
        torch.manual_seed(1)
        own = {"width": 8, "projector_width": 8} if name.startswith("drd") else {"width": 8}
        method = create_method(name, {**own, **options}, self.context)
        method.begin_stage("student")
        return method.train()

    def drd(self, name: str = "drd", **options: Any) -> DeepReprogrammingDistillation:
        """The same, known to be DRD."""
        method = self.method(name, **options)
        assert isinstance(method, DeepReprogrammingDistillation)
        return method

    def output(self, method: Method) -> StudentOutput:
        """What the student, while it trains, makes of the images."""
        self.student.train()
        return self.student(self.images, method.student_stages)

    def terms(self, method: Method, progress: TrainingProgress = START) -> dict[str, torch.Tensor]:
        """The terms of the batch, with the same draws each time."""
        torch.manual_seed(5)
        return method(self.batch, self.output(method), progress)
