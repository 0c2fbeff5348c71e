"""Files of trained students: safetensors with the architecture in their metadata."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from rdcache.errors import WeightsMismatchError, WeightsNotFoundError, reason_of
from rdcache.files import write_bytes
from rdcache.models.student import Student
from rdcache.models.students import create_student
from rdcache.models.weight_files import is_there

METADATA_KEY = "rdcache_student"


def save_student(student: Student, path: Path | str) -> None:
    """Write a student to a safetensors file, whole or not at all.

    Any safetensors reader opens it; `load_student` rebuilds the network from its metadata.

    Raises:
        FileWriteError: it cannot be written.
    """
    path = Path(path)
    tensors = {
        name: value.detach().cpu().contiguous() for name, value in student.state_dict().items()
    }
    # Not `save_file`, which makes files that only their owner may read.
    data = save(tensors, {METADATA_KEY: json.dumps(student.architecture)})
    write_bytes(path, data)


def load_student(path: Path | str) -> Student:
    """Rebuild a student from the file that `save_student` wrote, in evaluation mode.

    Raises:
        WeightsNotFoundError: there is no such file.
        WeightsMismatchError: the file is damaged, or not one of `save_student`.
    """
    path = Path(path)
    if not is_there(path):
        raise WeightsNotFoundError("there is no such student file.", looked_for=path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors = load_file(path)
        architecture = json.loads(metadata[METADATA_KEY])
        student = create_student(
            architecture["name"],
            int(architecture["num_classes"]),
            channels=architecture.get("channels"),
        )
        student.load_state_dict(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise WeightsMismatchError(
            "this file is not a student that rdcache saved.",
            file=path,
            reason=reason_of(error),
        ) from error
    return student.eval()
