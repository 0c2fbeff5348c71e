"""`student:FILE`, `student:RUN`, `student:OUT`: a student of rdcache as a frozen teacher.

Its stages are the taps, so that a network trained beforehand on the task itself can teach another.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from rdcache.errors import UsageError, WeightsMismatchError, WeightsNotFoundError
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.student import Student
from rdcache.models.student_files import load_student
from rdcache.models.taps import TapNetwork, measure_shapes
from rdcache.models.teacher import Adaptation, Teacher, WeightsInfo
from rdcache.models.volume_networks import NAMES
from rdcache.models.volume_preprocessing import VolumePreprocessing
from rdcache.models.weight_files import is_there, tensors_digest, weight_tensors

FAMILY = "student"
FILE, RESULT, CONFIG = "student.safetensors", "result.json", "config.yaml"


class StudentTaps(TapNetwork):
    """The stages of a student, its features as `pooled`, and its `logits`.

    Attributes:
        names: stage → tap: by stride, as for every teacher, where the stages are a pyramid. `s1` of
            a `unet3d` is at stride 2, and would be taken for a map at stride 4.
    """

    def __init__(self, student: Student) -> None:
        super().__init__()
        self.student = student
        strides = {stage: stride for stage, (_, stride) in student.stages.items()}
        pyramid = len(set(strides.values())) > 1
        self.names = {
            stage: NAMES.get(stride, stage) if pyramid and stage != "s4_pre" else stage
            for stage, stride in strides.items()
        }

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`."""
        output = self.student(images, tuple(self.student.stages))
        # Logits of positions are a map too, but none to start from: the last map is the default.
        yield "logits", output.logits
        for stage, maps in output.stages.items():
            yield self.names[stage], maps
        yield "pooled", output.features


def load_student_teacher(place: str, weights: str | None) -> Teacher:
    """Build `student:FILE` or `student:RUN`.

    A run says on what images the student was trained, at what size, and which classes its logits
    are of; a file alone leaves the size to the student's own. `RUN` may also be the folder that was
    given to `distill --out`, if there is one run in it.

    Raises:
        UsageError: other weights are asked for.
        WeightsNotFoundError: there is no such file, or none in the run, or several runs.
        WeightsMismatchError: it is not a student that rdcache saved, or the run is damaged.
    """
    if weights is not None:
        raise UsageError("the weights of a student are in its file.", weights=weights)
    given = Path(place).expanduser()
    path = _only_run(given) / FILE if given.is_dir() else given
    student = load_student(path)
    told = path.with_name(RESULT)
    result = _result(told) if given.is_dir() and is_there(told) else {}
    network = StudentTaps(student)
    preprocessing = _preprocessing(student, result)
    digest = tensors_digest(weight_tensors(network))
    return Teacher(
        name=f"{FAMILY}:{given.name}",
        architecture=f"{FAMILY}/{student.name}-{student.num_classes}",
        network=network,
        shapes=measure_shapes(network, preprocessing.input_shape[1:], preprocessing.input_shape[0]),
        preprocessing=preprocessing,
        weights=WeightsInfo(
            source="file",
            sha256=digest,
            licence="as its teacher's and its images'",
            file=path.name,
            matched=f"{len(weight_tensors(network))} of {len(weight_tensors(network))}",
        ),
        adaptation=_trained_on(result, digest),
    )


def _only_run(folder: Path) -> Path:
    """Return the folder itself if it is a run, else the one run that is in it, finished or not."""
    if is_there(folder / FILE):
        return folder
    runs = sorted(
        {each.parent for name in (FILE, CONFIG) for each in folder.glob(f"**/seed*/{name}")}
    )
    if len(runs) > 1:
        raise WeightsNotFoundError(
            f"{len(runs)} runs are in this folder, and one of them is to be the teacher.",
            looked_in=folder,
            next=f"student:{runs[0]}, or another of them",
        )
    return runs[0] if runs else folder


def _preprocessing(student: Student, result: dict[str, Any]) -> Preprocessing | VolumePreprocessing:
    mean, std = tuple(student.mean), tuple(student.std)
    if student.dimensions == 3:
        side = result.get("image_size") or student.input_size
        box = result.get("views", {}).get("patch") or [side] * 3
        return VolumePreprocessing(
            (box[0], box[1], box[2]),
            student.channels,
            mean=mean,
            std=std,
            divisor=student.multiple_of,
        )
    size = result.get("image_size") or student.input_size
    return Preprocessing(int(size), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def _trained_on(result: dict[str, Any], digest: str) -> Adaptation | None:
    """What the run was trained on: its test images must not become training images."""
    if not result:
        return None
    dataset, teacher = result["dataset"], result["teacher"]
    return Adaptation(
        method=FAMILY,
        options={"student": result["student"], "method": result["method"]},
        teacher=str(teacher["name"]),
        teacher_sha256=str(teacher.get("weights", {}).get("sha256", "")),
        teacher_source=str(teacher.get("weights", {}).get("source", "")),
        dataset=str(dataset["name"]),
        dataset_digest=str(dataset["digest"]),
        classes=tuple(dataset["classes"]),
    )


def _result(path: Path) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        dataset = result["dataset"]
        names = (result["student"], result["method"], result["teacher"]["name"])
        needed = (*names, dataset["name"], dataset["digest"])
        assert all(isinstance(each, str) for each in needed)
        assert isinstance(dataset["classes"], list)
    except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise WeightsMismatchError(
            "the result of this run cannot be read.",
            file=path,
            next=f"student:{path.parent / FILE}, the student alone",
        ) from error
    return result
