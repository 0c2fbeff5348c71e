"""PMC-CLIP's image encoder against its formula in float64, from the published file's tensors."""

from __future__ import annotations

from pathlib import Path

import published_layouts as published
import pytest
import torch
import torch.nn.functional as F

from rdcache.errors import WeightsMismatchError
from rdcache.models import load_teacher

Tensors = dict[str, torch.Tensor]
HEADS = 8


@pytest.fixture(scope="module")
def tensors() -> Tensors:
    return published.tensors_of(published.pmc_clip())


def norm(x: torch.Tensor, t: Tensors, name: str) -> torch.Tensor:
    mean, var, weight, bias = (
        t[f"{name}.{part}"].double().view(-1, 1, 1)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def conv(x: torch.Tensor, t: Tensors, name: str, stride: int = 1) -> torch.Tensor:
    weight = t[f"{name}.weight"].double()
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def block(x: torch.Tensor, t: Tensors, name: str, stride: int) -> torch.Tensor:
    y = norm(conv(x, t, f"{name}.conv1"), t, f"{name}.bn1").relu()
    y = norm(conv(y, t, f"{name}.conv2"), t, f"{name}.bn2").relu()
    y = F.avg_pool2d(y, stride)
    y = norm(conv(y, t, f"{name}.conv3"), t, f"{name}.bn3")
    if f"{name}.downsample.0.weight" in t:
        x = norm(
            conv(F.avg_pool2d(x, stride), t, f"{name}.downsample.0"), t, f"{name}.downsample.1"
        )
    return (x + y).relu()


def attention_pool(x: torch.Tensor, t: Tensors) -> torch.Tensor:
    """softmax(q·kᵀ/√d)·v per head, the query being the mean position only; one image."""
    channels = x.shape[1]
    positions = x[0].reshape(channels, -1).T  # (49, C)
    tokens = torch.cat([positions.mean(0, keepdim=True), positions])
    tokens = tokens + t["attnpool.positional_embedding"].double()

    def project(name: str, y: torch.Tensor) -> torch.Tensor:
        weight, bias = (t[f"attnpool.{name}_proj.{part}"].double() for part in ("weight", "bias"))
        return y @ weight.T + bias

    query, keys, values = project("q", tokens[:1]), project("k", tokens), project("v", tokens)
    width = channels // HEADS
    heads = []
    for head in range(HEADS):
        part = slice(head * width, (head + 1) * width)
        scores = query[:, part] @ keys[:, part].T / width**0.5
        heads.append(scores.softmax(-1) @ values[:, part])
    return project("c", torch.cat(heads, 1))


def reference(images: torch.Tensor, t: Tensors) -> Tensors:
    x = images.double()
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = norm(conv(x, t, f"conv{number}", stride), t, f"bn{number}").relu()
    x = F.avg_pool2d(x, 2)
    taps = {}
    for layer, depth in enumerate((3, 4, 6, 3), start=1):
        for number in range(depth):
            stride = 2 if number == 0 and layer > 1 else 1
            x = block(x, t, f"layer{layer}.{number}", stride)
        taps[f"s{layer}"] = x
    taps["pooled"] = attention_pool(x, t)
    return taps


def relative_error(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value.double() - expected).norm() / expected.norm()).item()


def test_every_tap_equals_the_formula(tensors: Tensors, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "image_encoder(resnet50).pth")
    teacher = load_teacher("pmc-clip", tmp_path / "image_encoder(resnet50).pth")
    images = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    expected = reference(images, tensors)
    outputs = teacher.forward_taps(images, list(expected))
    assert list(outputs) == ["s1", "s2", "s3", "s4", "pooled"]
    for name, value in outputs.items():
        assert value.shape == expected[name].shape
        assert relative_error(value, expected[name]) < 1e-4, name


def test_the_full_checkpoint_gives_the_same_teacher(tensors: Tensors, tmp_path: Path) -> None:
    torch.save(tensors, tmp_path / "image.pth")
    towers = {f"module.visual.{name}": value for name, value in tensors.items()}
    towers["module.text_projection"] = torch.zeros(3)
    torch.save({"epoch": 3, "state_dict": towers, "name": "pmc"}, tmp_path / "checkpoint.pt")
    encoder = load_teacher("pmc-clip", tmp_path / "image.pth")
    checkpoint = load_teacher("pmc-clip", tmp_path / "checkpoint.pt")
    assert checkpoint.weights.sha256 == encoder.weights.sha256
    assert checkpoint.weights.matched == "284 of 284"


def test_the_plain_resnet_variant_is_called_by_its_name(tensors: Tensors, tmp_path: Path) -> None:
    plain = {name: value for name, value in tensors.items() if not name.startswith("attnpool.")}
    plain |= {"head.weight": torch.zeros(768, 2048), "head.bias": torch.zeros(768)}
    torch.save(plain, tmp_path / "plain.pth")
    with pytest.raises(WeightsMismatchError, match=r"plain ResNet \(head\.\*"):
        load_teacher("pmc-clip", tmp_path / "plain.pth")


def test_its_input_is_clips(tensors: Tensors) -> None:
    facts = load_teacher("pmc-clip", "random").preprocessing.to_dict()
    assert facts == {
        "size": 224,
        "mean": [0.48145466, 0.4578275, 0.40821073],
        "std": [0.26862954, 0.26130258, 0.27577711],
        "interpolation": "bicubic",
        "channels": "rgb",
    }
