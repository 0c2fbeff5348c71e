"""Files with the published names and shapes load into the right places, and no others load."""

from __future__ import annotations

import re
from pathlib import Path

import published_layouts as published
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file
from torch import nn

from rdcache.errors import WeightsMismatchError, WeightsNotFoundError
from rdcache.models import load_teacher

LAYOUTS = {
    "pmc-clip": published.pmc_clip,
    "rad-densenet": published.rad_densenet,
    "rad-resnet50": published.rad_resnet50,
    "lvm-med": published.lvm_med,
    "lvm-med-resnet50": published.lvm_med_resnet50,
}
IMAGES = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(7))


def saved(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    torch.save(tensors, path)
    return path


def torchvision_features(name: str, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """The last map that torchvision's own network computes from torchvision-named tensors."""
    network = torchvision.models.get_model(name).eval()
    missing, surplus = network.load_state_dict(tensors, strict=False)
    assert not surplus
    assert all(key.startswith(("fc.", "classifier.")) for key in missing)
    with torch.no_grad():
        if name == "densenet121":
            return F.relu(network.features(IMAGES))
        maps = torchvision.models.feature_extraction.create_feature_extractor(network, ["layer4"])
        return maps(IMAGES)["layer4"]


def test_rad_densenet_computes_what_torchvision_computes(tmp_path: Path) -> None:
    tensors = published.tensors_of(published.rad_densenet())
    teacher = load_teacher("rad-densenet", saved(tensors, tmp_path / "DenseNet121.pt"))
    renamed = {"features." + name[len("backbone.0.") :]: value for name, value in tensors.items()}
    expected = torchvision_features("densenet121", renamed)
    outputs = teacher.forward_taps(IMAGES, ["s4", "pooled"])
    torch.testing.assert_close(outputs["s4"], expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs["pooled"], expected.mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert teacher.weights.matched == "604 of 604"
    assert teacher.weights.warning == ""


def test_rad_densenet_loads_from_names_of_old_torchvision(tmp_path: Path) -> None:
    tensors = published.tensors_of(published.rad_densenet())
    dotted = {
        re.sub(r"(denselayer\d+\.)(norm|conv)([12])", r"\1\2.\3", name): value
        for name, value in tensors.items()
    }
    assert "backbone.0.denseblock1.denselayer1.norm.1.weight" in dotted
    new = load_teacher("rad-densenet", saved(tensors, tmp_path / "new.pt"))
    old = load_teacher("rad-densenet", saved(dotted, tmp_path / "old.pt"))
    assert old.weights.sha256 == new.weights.sha256


def test_rad_resnet50_computes_what_torchvision_computes(tmp_path: Path) -> None:
    tensors = published.tensors_of(published.rad_resnet50())
    teacher = load_teacher("rad-resnet50", saved(tensors, tmp_path / "ResNet50.pt"))
    children = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    renamed = {
        ".".join([children[int(name.split(".")[1])], *name.split(".")[2:]]): value
        for name, value in tensors.items()
    }
    expected = torchvision_features("resnet50", renamed)
    torch.testing.assert_close(
        teacher.forward_taps(IMAGES, ["s4"])["s4"], expected, rtol=1e-4, atol=1e-4
    )


def test_lvm_med_resnet50_computes_what_torchvision_computes(tmp_path: Path) -> None:
    tensors = published.tensors_of(published.lvm_med_resnet50())
    teacher = load_teacher("lvm-med-resnet50", saved(tensors, tmp_path / "lvmmed_resnet.torch"))
    expected = torchvision_features("resnet50", tensors)
    torch.testing.assert_close(
        teacher.forward_taps(IMAGES, ["s4"])["s4"], expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["rad-densenet", "rad-resnet50"])
def test_radimagenet_input_is_bgr_between_minus_one_and_one(name: str) -> None:
    preprocessing = load_teacher(name, "random").preprocessing
    pixel = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)  # R, G, B
    assert preprocessing.normalise(pixel).flatten().tolist() == pytest.approx([1.0, -0.6, -1.0])


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_file_under_a_wrong_prefix_fails_and_names_what_does_not_match(
    name: str, tmp_path: Path
) -> None:
    zero = torch.zeros(())  # one number on disk, whatever the shape
    tensors = {f"encoder.{key}": zero.expand(shape) for key, shape in LAYOUTS[name]().items()}
    first = next(iter(tensors))
    with pytest.raises(WeightsMismatchError) as caught:
        load_teacher(name, saved(tensors, tmp_path / "weights.pth"))
    facts = caught.value.facts
    assert facts["matched"].startswith("0 of ")
    assert "weight" in facts["not in it"]
    assert first in facts["in it instead"] or name == "lvm-med"
    assert "'encoder.'" in facts["hint"]


def test_a_radimagenet_file_given_as_another_teacher_fails(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(()).expand(s) for name, s in published.rad_resnet50().items()}
    path = saved(tensors, tmp_path / "ResNet50.pt")
    with pytest.raises(WeightsMismatchError, match="lvm-med-resnet50"):
        load_teacher("lvm-med-resnet50", path)


@pytest.mark.parametrize(
    ("teacher", "network"), [("rad-resnet50", "resnet50"), ("rad-densenet", "densenet121")]
)
def test_torchvisions_imagenet_weights_are_not_taken_for_radimagenet(
    teacher: str, network: str, tmp_path: Path
) -> None:
    path = saved(blank(torchvision.models.get_model(network)), tmp_path / "weights.pth")
    with pytest.raises(WeightsMismatchError, match=teacher) as caught:
        load_teacher(teacher, path)
    assert "1000 classes" in caught.value.facts["it is"]


def test_a_full_efficientnet_is_not_taken_for_a_lite_one(tmp_path: Path) -> None:
    path = saved(blank(timm.create_model("efficientnet_b0")), tmp_path / "weights.pth")
    with pytest.raises(WeightsMismatchError, match="efficientnet-lite0") as caught:
        load_teacher("efficientnet-lite0", path)
    assert "squeeze-and-excitation" in caught.value.facts["it is"]


@pytest.mark.parametrize("name", ["_blocks.x.y", "_blocks.0", "_blocks", "_blocks.99._bn0.bias"])
def test_block_names_that_make_no_sense_are_in_the_file_instead(name: str, tmp_path: Path) -> None:
    path = saved({name: torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(WeightsMismatchError) as caught:
        load_teacher("efficientnet-lite0", path)
    assert caught.value.facts["in it instead"] == name


def blank(network: nn.Module) -> dict[str, torch.Tensor]:
    """Names and shapes of a network's tensors; one number on disk, whatever the shape."""
    return {
        name: torch.zeros((), dtype=value.dtype).expand(value.shape)
        for name, value in network.state_dict().items()
    }


def test_tensors_of_another_shape_are_named_with_both_shapes(tmp_path: Path) -> None:
    tensors = {name: torch.zeros(1) for name in published.lvm_med_resnet50()}
    with pytest.raises(WeightsMismatchError) as caught:
        load_teacher("lvm-med-resnet50", saved(tensors, tmp_path / "weights.pth"))
    assert "conv1.weight 1 instead of 64×3×7×7" in caught.value.facts["other shape"]


def test_one_tensor_in_a_hundred_may_lack_and_no_more(tmp_path: Path) -> None:
    layout = published.lvm_med_resnet50()
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in layout.items()}
    names = [name for name in tensors if "num_batches" not in name]
    assert len(names) == 265
    for name in names[-2:]:
        del tensors[name]
    teacher = load_teacher("lvm-med-resnet50", saved(tensors, tmp_path / "two-lack.pth"))
    assert teacher.weights.matched == "263 of 265"
    assert "263 of 265 of the teacher's tensors; the others are random" in teacher.weights.warning
    del tensors[names[-3]]
    with pytest.raises(WeightsMismatchError, match="262 of 265"):
        load_teacher("lvm-med-resnet50", saved(tensors, tmp_path / "three-lack.pth"))


def test_the_same_numbers_in_two_file_formats_are_one_teacher(tmp_path: Path) -> None:
    tensors = published.tensors_of(published.rad_resnet50())
    save_file(tensors, tmp_path / "weights.safetensors")
    pickled = load_teacher("rad-resnet50", saved({"state_dict": tensors}, tmp_path / "weights.pt"))
    safe = load_teacher("rad-resnet50", tmp_path / "weights.safetensors")
    assert safe.weights.sha256 == pickled.weights.sha256
    changed = tensors | {"backbone.1.bias": tensors["backbone.1.bias"] + 1}
    other = load_teacher("rad-resnet50", saved(changed, tmp_path / "changed.pt"))
    assert other.weights.sha256 != safe.weights.sha256


def test_the_published_file_is_found_in_the_data_folder(tmp_path: Path) -> None:
    folder = tmp_path / "weights" / "rad-resnet50"
    folder.mkdir(parents=True)
    saved(published.tensors_of(published.rad_resnet50()), folder / "ResNet50.pt")
    teacher = load_teacher("rad-resnet50", data_dir=tmp_path)
    assert (teacher.weights.source, teacher.weights.file) == ("file", "ResNet50.pt")


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_weights_say_which_file_where_and_whence(name: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFoundError) as caught:
        load_teacher(name, data_dir=tmp_path)
    assert str(caught.value).startswith(f"the weights of {name} are not there.\n  looked for ")
    assert str(tmp_path / "weights" / name) in caught.value.facts["looked for"]
    assert "licence" in caught.value.facts["get it from"]
    assert "--weights FILE" in caught.value.facts["or pass"]
