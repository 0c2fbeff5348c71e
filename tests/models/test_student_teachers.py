"""Students that rdcache has trained as frozen teachers, and encoders of MONAI with own weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from rdcache.errors import UsageError, WeightsMismatchError, WeightsNotFoundError
from rdcache.models import create_student, for_volumes, load_teacher, save_student
from rdcache.models.monai_networks import SegResNetTaps, SwinTaps
from rdcache.models.student_teachers import StudentTaps

DATASET = {"name": "phantom-3d-seg", "digest": "d1", "classes": ["background", "a", "b"]}
RESULT = {
    "student": "unet3d",
    "method": "none",
    "teacher": {"name": "merlin", "weights": {"sha256": "5a", "source": "file"}},
    "dataset": DATASET,
    "views": {"patch": [16, 32, 32]},
    "image_size": None,
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as a run on volumes leaves it."""
    folder = tmp_path / "seed0"
    folder.mkdir()
    torch.manual_seed(0)
    save_student(create_student("unet3d", 3, channels=1), folder / "student.safetensors")
    (folder / "result.json").write_text(json.dumps(RESULT))
    return folder


def test_the_stages_of_a_student_are_the_taps_of_a_teacher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = create_student("shufflenet-x0.5", 4).eval()
    save_student(student, tmp_path / "mine.safetensors")
    teacher = load_teacher(f"student:{tmp_path / 'mine.safetensors'}")
    images = torch.randn(2, 3, 64, 64)
    found = teacher.forward_taps(images, ["s3", "s4", "pooled", "logits"])
    with torch.no_grad():
        expected = student(images, ("s3", "s4"))
    torch.testing.assert_close(found["s4"], expected.stages["s4"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["pooled"], expected.features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["logits"], expected.logits, rtol=1e-4, atol=1e-4)
    assert (teacher.name, teacher.default_tap) == ("student:mine.safetensors", "s4")
    assert teacher.of_images.mean == student.mean
    assert teacher.adaptation is None, "a file does not say on what it was trained"


def test_a_run_on_volumes_gives_a_teacher_of_volumes_for_its_patch(run: Path) -> None:
    teacher = load_teacher(f"student:{run}")
    assert (teacher.dimensions, teacher.input_shape) == (3, (1, 16, 32, 32))
    assert teacher.taps["logits"].shape == (3, 16, 32, 32)
    assert teacher.default_tap != "logits"
    assert teacher.adaptation is not None
    assert (teacher.adaptation.dataset, teacher.adaptation.dataset_digest) == (
        "phantom-3d-seg",
        "d1",
    )
    other = for_volumes(teacher, 1, (32, 32, 32))
    assert other.taps["logits"].shape == (3, 32, 32, 32)


def test_taps_of_a_students_pyramid_are_named_by_stride_as_those_of_any_teacher(run: Path) -> None:
    teacher = load_teacher(f"student:{run}")  # boxes of 16 × 32 × 32
    assert {name: tap.shape for name, tap in teacher.taps.items() if name[0] == "s"} == {
        "stride1": (16, 16, 32, 32),
        "stride2": (32, 8, 16, 16),
        "s1": (64, 4, 8, 8),
        "s2": (128, 2, 4, 4),
        "s3": (256, 1, 2, 2),
    }
    assert teacher.default_tap == "s3"


@pytest.mark.parametrize(
    ("student", "expected"),
    [
        ("unet-shufflenet-x0.5", ["stride2", "s1", "s2", "s3", "s4_pre", "s4"]),
        ("unet-vit-tiny", ["s1", "s2", "s3", "s4"]),
    ],
)
def test_stages_of_images_keep_their_names(student: str, expected: list[str]) -> None:
    assert list(StudentTaps(create_student(student, 2)).names.values()) == expected


def test_a_run_on_whole_volumes_gives_a_teacher_of_the_cube_it_saw(tmp_path: Path) -> None:
    save_student(create_student("resnet3d-18", 2, channels=1), tmp_path / "student.safetensors")
    result = {**RESULT, "student": "resnet3d-18", "views": {}, "image_size": 28}
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert load_teacher(f"student:{tmp_path}").input_shape == (1, 28, 28, 28)


def test_the_same_student_is_the_same_teacher_wherever_it_lies(run: Path, tmp_path: Path) -> None:
    copied = tmp_path / "other.safetensors"
    copied.write_bytes((run / "student.safetensors").read_bytes())
    first, second = load_teacher(f"student:{run}"), load_teacher(f"student:{copied}")
    assert first.weights.sha256 == second.weights.sha256


def test_a_folder_with_one_run_stands_for_it_and_one_with_several_does_not(
    run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    (out / "phantom-3d-seg-unet3d-none-5a").mkdir(parents=True)
    shutil.copytree(run, out / "phantom-3d-seg-unet3d-none-5a" / "seed0")
    teacher = load_teacher(f"student:{out}")
    assert teacher.name == "student:out"
    assert teacher.adaptation == load_teacher(f"student:{run}").adaptation
    unfinished = out / "phantom-3d-seg-unet3d-none-5a" / "seed1"
    unfinished.mkdir()
    (unfinished / "config.yaml").touch()
    with pytest.raises(WeightsNotFoundError, match="2 runs are in this folder"):
        load_teacher(f"student:{out}")


def test_what_is_no_student_is_refused_in_a_sentence(run: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError):
        load_teacher(f"student:{tmp_path / 'nowhere'}")
    with pytest.raises(UsageError, match="in its file"):
        load_teacher(f"student:{run}", "random")
    (run / "result.json").write_text("{}")
    with pytest.raises(WeightsMismatchError, match="result of this run"):
        load_teacher(f"student:{run}")


def test_an_encoder_of_monai_is_as_wide_and_deep_as_its_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tensors = SegResNetTaps(8, 2, (1, 1, 2)).backbone.state_dict()
    torch.save({"state_dict": tensors}, tmp_path / "own.pth")
    teacher = load_teacher("monai:segresnet", tmp_path / "own.pth")
    assert teacher.input_shape == (2, 96, 96, 96)
    assert teacher.taps["s1"].shape == (32, 24, 24, 24)
    assert teacher.weights.matched == f"{len(tensors)} of {len(tensors)}"
    swin = {f"swinViT.{name}": it for name, it in SwinTaps(12).backbone.state_dict().items()}
    torch.save(swin, tmp_path / "swin.pth")
    small, older = (
        load_teacher(f"monai:{name}", tmp_path / "swin.pth")
        for name in ("swinunetr", "swinunetr-duplicates")
    )
    assert small.taps["s4"].shape == older.taps["s4"].shape == (192, 3, 3, 3)
    assert small.architecture != older.architecture, "the same weights, and other numbers"


def test_an_encoder_of_monai_asks_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError, match="--weights FILE"):
        load_teacher("monai:segresnet")
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsMismatchError, match="does not hold"):
        load_teacher("monai:segresnet", tmp_path / "other.pth")
