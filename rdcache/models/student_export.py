"""A student as an ONNX file, for machines without PyTorch."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from rdcache.errors import UsageError
from rdcache.files import write_bytes
from rdcache.models.student import Student
from rdcache.models.student_files import METADATA_KEY

INPUT, OUTPUT = "images", "logits"


class _Logits(nn.Module):
    """The part of a student that is deployed."""

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.student(images).logits


def export_onnx(student: Student, path: Path | str, size: Sequence[int] | None = None) -> None:
    """Write a student in evaluation mode to an ONNX file, whole or not at all.

    Its input `images` is float32 (batch, channels, *size), normalised; its output `logits` is
    (batch, classes), of a student that segments (batch, classes, *size). The batch is free, the
    size is not. Under the key `rdcache_student` the file's metadata holds, as JSON, the name of
    the student, its number of classes, and the mean and std of its input in fractions of full
    white.

    Args:
        size: sides of its input in pixels or voxels; by default those that it is meant for.

    Raises:
        UsageError: the packages for it are not installed, or the student does not see such sizes.
        FileWriteError: it cannot be written.
    """
    sides = tuple(size) if size is not None else (student.input_size,) * student.dimensions
    if len(sides) != student.dimensions:
        raise UsageError(
            f"{student.name} sees inputs of {student.dimensions} sides.",
            given="×".join(map(str, sides)),
        )
    training = student.training
    student.eval()
    try:
        device = next(student.parameters()).device
        # Two, because one of a batch would be taken for a constant.
        images = torch.zeros(2, student.channels, *sides, device=device)
        with torch.no_grad():
            student(images)  # refuses sizes in a sentence, which an exporter would not
        content = _onnx_bytes(student, images)
    finally:
        student.train(training)
    write_bytes(Path(path), content)


def _onnx_bytes(student: Student, images: torch.Tensor) -> bytes:
    facts = {**student.architecture, "mean": list(student.mean), "std": list(student.std)}
    try:
        # The exporter warns of its own dependencies and of what later versions will do.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Logits(student).eval(),
                (images,),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                dynamo=True,
                verbose=False,
            )
    except ModuleNotFoundError as missing:
        raise UsageError(
            f"ONNX files are written by the package {missing.name}.",
            next="pip install 'rdcache[onnx]'",
        ) from missing
    assert program is not None
    program.model.metadata_props[METADATA_KEY] = json.dumps(facts)
    content: bytes = program.model_proto.SerializeToString()
    return content
