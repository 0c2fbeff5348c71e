"""Students: declared widths and stages are the real ones, and files bring the same network back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import save_file

from rdcache.errors import (
    UnknownNameError,
    UsageError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from rdcache.models import Student, create_student, list_students, load_student, save_student

CARDS = {card.name: card for card in list_students()}
TORCHVISION = {
    "resnet18": "resnet18",
    "mobilenet": "mobilenet_v2",
    "shufflenet": "shufflenet_v2_x1_0",
    "shufflenet-x0.5": "shufflenet_v2_x0_5",
}
IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(9))


def outputs_equal(first: Student, second: Student) -> bool:
    with torch.no_grad():
        return torch.equal(first.eval()(IMAGES).logits, second.eval()(IMAGES).logits)


@pytest.mark.parametrize(
    ("name", "parameters", "width"),
    [
        ("resnet18", 11_176_512, 512),
        ("shufflenet", 1_253_604, 1024),
        ("mobilenet", 2_223_872, 1280),
        ("shufflenet-x0.5", 341_792, 1024),
    ],
)
def test_students_have_the_papers_sizes(name: str, parameters: int, width: int) -> None:
    student = create_student(name, 4)
    counted = sum(parameter.numel() for parameter in student.backbone.parameters())
    assert counted == CARDS[name].parameters == parameters
    assert student.feature_dim == CARDS[name].feature_dim == width
    assert student.classifier.weight.shape == (4, width)


def test_stages_are_declared_as_the_method_needs_them() -> None:
    assert CARDS["resnet18"].stages == {
        "s1": (64, 4),
        "s2": (128, 8),
        "s3": (256, 16),
        "s4": (512, 32),
    }
    shufflenet = {"s1": (24, 4), "s2": (116, 8), "s3": (232, 16)}
    assert CARDS["shufflenet"].stages == shufflenet | {"s4_pre": (464, 32), "s4": (1024, 32)}
    mobilenet = {"s1": (24, 4), "s2": (32, 8), "s3": (96, 16)}
    assert CARDS["mobilenet"].stages == mobilenet | {"s4_pre": (320, 32), "s4": (1280, 32)}


@pytest.mark.parametrize("name", [*TORCHVISION, "timm:resnet10t", "timm:vit_tiny_patch16_224"])
def test_declared_stages_are_those_of_a_forward_pass(name: str) -> None:
    student = create_student(name, 3).eval()
    size = 224 if "timm:vit" in name else 64
    images = torch.zeros(1, 3, size, size)
    output = student(images, tuple(student.stages))
    assert output.features.shape == (1, student.feature_dim)
    assert output.logits.shape == (1, 3)
    assert set(output.stages) == set(student.stages)
    for stage, (channels, stride) in student.stages.items():
        assert output.stages[stage].shape == (1, channels, size // stride, size // stride)
    assert student(images).stages == {}


@pytest.mark.parametrize("name", TORCHVISION)
def test_features_are_the_mean_of_the_last_stage_and_feed_the_classifier(name: str) -> None:
    output = create_student(name, 3).eval()(IMAGES, ("s4",))
    torch.testing.assert_close(output.features, output.stages["s4"].mean((2, 3)))


@pytest.mark.parametrize("name", TORCHVISION)
def test_a_students_logits_are_torchvisions(name: str, tmp_path: Path) -> None:
    network = torchvision.models.get_model(TORCHVISION[name], num_classes=3).eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    student = create_student(name, 3, tmp_path / "weights.pth").eval()
    head = network.fc if hasattr(network, "fc") else network.classifier[1]
    student.classifier.load_state_dict(head.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(student(IMAGES).logits, network(IMAGES))


def test_a_student_that_trains_differs_by_batch_norm_only() -> None:
    """No dropout anywhere: two training passes over one batch are equal."""
    student = create_student("mobilenet", 3).train()
    torch.testing.assert_close(student(IMAGES).logits, student(IMAGES).logits)


@pytest.mark.parametrize("name", [*TORCHVISION, "timm:resnet10t"])
def test_a_saved_student_comes_back_the_same(name: str, tmp_path: Path) -> None:
    student = create_student(name, 5)
    student(IMAGES)  # moves the running statistics
    save_student(student, tmp_path / "student.safetensors")
    loaded = load_student(tmp_path / "student.safetensors")
    assert outputs_equal(student, loaded)
    assert not loaded.training
    assert loaded.architecture == {"name": name, "num_classes": 5}
    assert [path.name for path in tmp_path.iterdir()] == ["student.safetensors"]


def test_the_file_tells_its_architecture_to_any_reader(tmp_path: Path) -> None:
    save_student(create_student("shufflenet-x0.5", 2), tmp_path / "student.safetensors")
    with safe_open(tmp_path / "student.safetensors", framework="np") as file:
        architecture = json.loads(file.metadata()["rdcache_student"])
        assert "classifier.weight" in file.keys()  # noqa: SIM118 (not a dict)
    assert architecture == {"name": "shufflenet-x0.5", "num_classes": 2}


def test_a_trained_student_starts_another_with_other_classes(tmp_path: Path) -> None:
    trained = create_student("shufflenet-x0.5", 2)
    save_student(trained, tmp_path / "student.safetensors")
    other = create_student("shufflenet-x0.5", 7, tmp_path / "student.safetensors")
    with torch.no_grad():
        features = [student.eval()(IMAGES).features for student in (trained, other)]
    assert torch.equal(*features)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_student(create_student("shufflenet-x0.5", 2), tmp_path / "student.safetensors")
    with pytest.raises(WeightsMismatchError):
        create_student("shufflenet", 2, tmp_path / "student.safetensors")
    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(WeightsMismatchError):
        create_student("shufflenet", 2, tmp_path / "resnet.pth")


def test_a_foreign_or_damaged_file_is_no_student(tmp_path: Path) -> None:
    path = tmp_path / "student.safetensors"
    with pytest.raises(WeightsNotFoundError):
        load_student(path)
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(WeightsMismatchError, match="not a student"):
        load_student(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(WeightsMismatchError, match="not a student"):
        load_student(path)


def test_without_a_network_imagenet_weights_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # nobody listens
    with pytest.raises(WeightsNotFoundError) as caught:
        create_student("shufflenet", 2, "imagenet")
    assert "--student-weights" in caught.value.facts["or pass"]


def test_unknown_students_and_stages_get_near_names() -> None:
    with pytest.raises(UnknownNameError, match="shufflenet"):
        create_student("shuflenet", 2)
    with pytest.raises(UnknownNameError, match="resnet18"):
        create_student("timm:resnet19", 2)
    with pytest.raises(UnknownNameError, match="s4_pre"):
        create_student("shufflenet-x0.5", 2)(IMAGES, ("s4pre",))


def test_a_student_needs_classes() -> None:
    with pytest.raises(UsageError):
        create_student("shufflenet", 0)


def test_input_normalisation_is_the_networks_own() -> None:
    assert create_student("resnet18", 2).mean == (0.485, 0.456, 0.406)
    assert create_student("timm:vit_tiny_patch16_224", 2).mean == (0.5, 0.5, 0.5)
