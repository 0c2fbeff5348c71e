"""What teachers and students cost: parameters, operations, time and bytes, as in the paper's table.

None of it depends on what the weights are, so networks without weights at hand are measured with
random ones.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import nn

from rdcache.distillation.hardware import threads
from rdcache.errors import UsageError, WeightsNotFoundError, reason_of
from rdcache.extraction.shared_options import DataDirOption
from rdcache.models import Student, Teacher, create_student, load_teacher, save_student
from rdcache.models.adapters import AdaptedNetwork
from rdcache.models.onnx_models import OnnxTaps, count_numbers
from rdcache.models.weight_files import weight_tensors
from rdcache.progress import Progress, ignore
from rdcache.report.latencies import (
    FEWEST,
    Forward,
    Latency,
    measure_latencies,
    random_images,
    timed_on,
)
from rdcache.report.operations import Operations, count_operations

SEGMENTED = 2  # classes, where no number of them is given
RANDOM_NOTE = "its weights are not here: measured with random ones, which cost the same"


class CostConfig(BaseModel):
    """Options of `rdcache cost`. Field descriptions are the help texts of the command line."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    teacher: tuple[str, ...] = Field(default=(), description="Teachers, comma-separated.")
    student: tuple[str, ...] = Field(default=(), description="Students, comma-separated.")
    image_size: int | None = Field(
        default=None,
        ge=16,
        description="Side of the students' input in pixels or voxels (default: each one's own, "
        "mostly 224; of volumes 64). "
        "Teachers have one of their own.",
    )
    classes: int = Field(
        default=1000,
        gt=0,
        description="Classes of the classifier, of the students and in the second column of "
        "parameters (default of students that segment: 2).",
    )
    batch: tuple[int, ...] = Field(
        default=(1, 32), description="Batch sizes that are timed, comma-separated."
    )
    seconds: float = Field(
        default=3.0,
        ge=0,
        description=f"Time to spend on each latency; at least {FEWEST} forward passes.",
    )
    threads: int | None = Field(
        default=None, gt=0, description="CPU threads (default: PyTorch's choice)."
    )
    device: str = Field(
        default="auto", description="auto (the CPU, and a GPU where there is one), cpu, cuda, …"
    )
    data_dir: DataDirOption = None


@dataclass(frozen=True)
class Cost:
    """What one network costs. What cannot be told is None, and a note says why.

    Attributes:
        input_size: side of its square input in pixels, or of its cube in voxels.
        parameters: without a classifier.
        with_classifier: and one linear classifier on the pooled features, or the last convolution
            of a student that segments.
        macs: multiply–accumulates for one image or volume.
        file_bytes: size of its weights on disk.
        dimensions: 2 for images, 3 for volumes.
    """

    name: str
    kind: Literal["teacher", "student"]
    input_size: int
    parameters: int | None
    with_classifier: int | None
    macs: int | None
    file_bytes: int
    latencies: tuple[Latency, ...]
    notes: tuple[str, ...] = ()
    dimensions: int = 2

    @property
    def flops(self) -> int | None:
        """Floating-point operations for one image: two a multiply–accumulate."""
        return None if self.macs is None else 2 * self.macs


def measure_costs(config: CostConfig, on_progress: Progress = ignore) -> list[Cost]:
    """Measure teachers, then students.

    Raises:
        UsageError: no network is named, or a student does not run at this input size.
        UnknownNameError: there is no such teacher or student.
    """
    if not config.teacher and not config.student:
        raise UsageError(
            "there is nothing to measure.",
            next="rdcache cost --teacher lvm-med --student resnet18,mobilenet,shufflenet",
        )
    if not all(batch > 0 for batch in config.batch):
        raise UsageError("a batch is of at least one image.", given=config.batch)
    devices = timed_on(config.device)
    total = len(config.teacher) + len(config.student)
    costs: list[Cost] = []
    with threads(config.threads):
        for name in (*config.teacher, *config.student):
            on_progress(len(costs), total)
            measure = cost_of_student if len(costs) >= len(config.teacher) else cost_of_teacher
            costs.append(measure(name, config, devices))
        on_progress(total, total)
    return costs


def cost_of_student(name: str, config: CostConfig, devices: Sequence[torch.device]) -> Cost:
    """Measure a student as it is deployed: with its classifier, from images to logits."""
    notes = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = create_student(name, config.classes).eval()
        if student.task_kind == "segmentation" and "classes" not in config.model_fields_set:
            student = create_student(name, SEGMENTED).eval()
            notes.append(f"measured with {SEGMENTED} classes: background, and what is segmented")
    size = config.image_size or student.input_size
    shape = (student.channels, *[size] * student.dimensions)
    if student.dimensions == 2:
        student.to(memory_format=torch.channels_last)
    try:
        operations = count_operations(lambda: student(random_images(1, shape)))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise UsageError(
            f"{name} does not run on such images.", image_size=size, why=reason_of(error)
        ) from error
    last = _count(student.classifier)
    parameters = _count(student) - last
    latencies, more = measure_latencies(
        lambda device: student.to(device), shape, config.batch, devices, config.seconds
    )
    return Cost(
        name=name,
        kind="student",
        input_size=size,
        parameters=parameters,
        with_classifier=parameters + last,
        macs=operations.macs,
        file_bytes=_saved_bytes(student),
        latencies=latencies,
        notes=(*notes, *_notes_on(operations), *more),
        dimensions=student.dimensions,
    )


def cost_of_teacher(name: str, config: CostConfig, devices: Sequence[torch.device]) -> Cost:
    """Measure a teacher as it is extracted from: without classifier, from images to the embedding
    that it recommends, or of a black box to all of its outputs.
    """
    teacher, notes = _teacher(name, config.data_dir)
    shape = teacher.input_shape
    wanted = ("pooled",) if "pooled" in teacher.taps else tuple(teacher.taps)
    family, _, file = name.partition(":")
    if family == "onnx":
        parameters, file_bytes = count_numbers(Path(file))
        operations = Operations(None)
        assert isinstance(teacher.network, OnnxTaps)
        notes.append("operations of an ONNX file are not seen by PyTorch's counter")
        notes.append(f"onnxruntime's {teacher.network.provider} runs it, whatever PyTorch does")
    else:
        parameters = _count(teacher.network) - sum(map(_count, _classifiers(teacher.network)))
        images = random_images(1, shape)
        operations = count_operations(lambda: teacher.forward_taps(images, wanted))
        notes += _notes_on(operations)
        file_bytes = Path(file).stat().st_size if family == "torchscript" else _bytes_of(teacher)
    if not parameters:
        notes.append("its parameters are constants of the program, which cannot be told apart")
    tap = teacher.taps["pooled" if "pooled" in teacher.taps else teacher.default_tap]
    width = tap.shape[tap.channel_axis]

    def on(device: torch.device) -> Forward:
        teacher.to(device)
        return lambda images: teacher.forward_taps(images, wanted)

    latencies, more = measure_latencies(on, shape, config.batch, devices, config.seconds)
    return Cost(
        name=teacher.name,
        kind="teacher",
        input_size=shape[-1],
        parameters=parameters or None,
        with_classifier=parameters + (width + 1) * config.classes if parameters else None,
        macs=operations.macs,
        file_bytes=file_bytes,
        latencies=latencies,
        notes=(*notes, *more),
    )


def _teacher(name: str, data_dir: Path | None) -> tuple[Teacher, list[str]]:
    """A teacher with its own weights if they lie here; none are downloaded for this."""
    if name.startswith("timm:"):
        return load_teacher(name, "random", data_dir), ["measured with random weights"]
    try:
        return load_teacher(name, None, data_dir), []
    except WeightsNotFoundError:
        if ":" in name:
            raise
        return load_teacher(name, "random", data_dir), [RANDOM_NOTE]


def _classifiers(network: nn.Module) -> list[nn.Module]:
    """What a timm network classifies its own task with, and an adapted one that which it was
    adapted to; others have none.
    """
    if isinstance(network, AdaptedNetwork):
        return [network.head, *_classifiers(network.base)]
    find = getattr(getattr(network, "backbone", None), "get_classifier", None)
    found = find() if find is not None else None
    if isinstance(found, tuple):  # of a distilled network, one for each of its tokens
        return list(found)
    return [found] if isinstance(found, nn.Module) else []


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _bytes_of(teacher: Teacher) -> int:
    """Bytes of all tensors that the output depends on."""
    tensors = weight_tensors(teacher.network).values()
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _saved_bytes(student: Student) -> int:
    """Bytes of the file that a run keeps of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.safetensors"
        save_student(student, path)
        return path.stat().st_size


def _notes_on(operations: Operations) -> list[str]:
    if not operations.uncounted:
        return []
    return [f"operations that PyTorch's counter does not know: {', '.join(operations.uncounted)}"]
