"""Taps of timm networks against what their modules compute, and where their weights come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from rdcache.errors import UnknownNameError, WeightsMismatchError, WeightsNotFoundError
from rdcache.models import Teacher, load_teacher
from rdcache.models.efficientnet_lite import packaged_file
from rdcache.models.taps import measure_shapes

VIT = "vit_tiny_patch16_224"


def images_for(teacher: Teacher) -> torch.Tensor:
    size = teacher.preprocessing.size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(5))


def hooked(module: nn.Module, teacher: Teacher) -> Any:
    """What a module of the teacher's network gives out during a plain timm forward pass."""
    seen: list[Any] = []
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        teacher.network.model(images_for(teacher))
    handle.remove()
    return seen[-1]


@pytest.fixture(scope="module")
def vit() -> Teacher:
    return load_teacher(f"timm:{VIT}", "random")


@pytest.fixture(scope="module")
def lite2() -> Teacher:
    return load_teacher("efficientnet-lite2")


def test_vit_stages_are_the_blocks_at_quarter_depths_folded_to_the_grid(vit: Teacher) -> None:
    outputs = vit.forward_taps(images_for(vit), ["s1", "s2", "s3", "s4", "tokens"])
    for name, depth in (("s1", 2), ("s2", 5), ("s3", 8), ("s4", 11)):
        tokens = hooked(vit.network.model.blocks[depth], vit)  # class token first
        folded = tokens[:, 1:].reshape(2, 14, 14, 192).permute(0, 3, 1, 2)
        torch.testing.assert_close(outputs[name], folded, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs["tokens"], tokens[:, 1:], rtol=1e-4, atol=1e-4)


def test_vit_pooled_is_what_its_classifier_sees(vit: Teacher) -> None:
    outputs = vit.forward_taps(images_for(vit), ["pooled", "logits"])
    torch.testing.assert_close(
        vit.network.model.head(outputs["pooled"]), outputs["logits"], rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        outputs["logits"], hooked(vit.network.model, vit), rtol=1e-4, atol=1e-4
    )


def test_class_and_register_tokens_are_dropped() -> None:
    teacher = load_teacher("timm:vit_little_patch16_reg4_gap_256", "random")
    assert teacher.taps["tokens"].shape == (256, 320)
    assert teacher.taps["s4"].shape == (320, 16, 16)


def test_asking_for_an_early_tap_does_not_run_the_late_blocks(vit: Teacher) -> None:
    ran = []
    last = vit.network.model.blocks[11]
    handle = last.register_forward_hook(lambda module, inputs, output: ran.append(module))
    vit.forward_taps(images_for(vit), ["s2", "s1"])
    assert not ran
    vit.forward_taps(images_for(vit), ["s2", "pooled"])
    assert len(ran) == 1
    handle.remove()


def test_asking_for_no_tap_gives_none(vit: Teacher) -> None:
    assert vit.forward_taps(images_for(vit), []) == {}


def test_taps_come_in_the_order_asked_for(vit: Teacher) -> None:
    assert list(vit.forward_taps(images_for(vit), ["s3", "s1"])) == ["s3", "s1"]
    assert list(vit.forward_taps(images_for(vit), ["pooled", "s1"])) == ["pooled", "s1"]


def test_cnn_stages_are_its_layers() -> None:
    teacher = load_teacher("timm:resnet10t", "random")
    outputs = teacher.forward_taps(images_for(teacher), ["s1", "s2", "s3", "s4"])
    for number in (1, 2, 3, 4):
        layer = teacher.network.model.get_submodule(f"layer{number}")
        torch.testing.assert_close(
            outputs[f"s{number}"], hooked(layer, teacher), rtol=1e-4, atol=1e-4
        )


def test_the_last_map_of_an_efficientnet_feeds_its_pooling(lite2: Teacher) -> None:
    outputs = lite2.forward_taps(images_for(lite2), ["s4_pre", "s4", "pooled"])
    model = lite2.network.model
    torch.testing.assert_close(
        outputs["s4_pre"], hooked(model.blocks[6], lite2), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(outputs["s4"].mean((2, 3)), outputs["pooled"], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(
        outputs["pooled"], hooked(model.global_pool, lite2), rtol=1e-4, atol=1e-4
    )
    assert lite2.default_tap == "s4"
    assert lite2.taps["s4"].shape == (1280, 7, 7)


@pytest.mark.parametrize("variant", [0, 1, 2])
def test_every_packaged_tensor_has_its_place(variant: int) -> None:
    """File and timm list the same layers in the same order, under other names."""
    path = packaged_file(variant)
    assert path is not None
    published = list(torch.load(path, weights_only=True).values())
    mine = list(load_teacher(f"efficientnet-lite{variant}").network.model.state_dict().values())
    assert len(published) == len(mine)
    for expected, value in zip(published, mine, strict=True):
        # Batch counters are left out of loading; no output depends on them.
        assert torch.equal(expected, value) or expected.dtype == torch.int64


def test_packaged_weights_are_told_in_the_teachers_facts(lite2: Teacher) -> None:
    assert lite2.weights.source == "package"
    assert lite2.weights.file == "efficientnet-lite2-9656183e.pth"
    assert lite2.weights.licence == "Apache-2.0"
    assert lite2.weights.matched == "322 of 322"


@pytest.mark.parametrize("name", ["swin_s3_tiny_224", "pit_ti_224", "convnext_atto", VIT])
def test_declared_shapes_are_those_of_a_forward_pass(name: str) -> None:
    teacher = load_teacher(f"timm:{name}", "random")
    outputs = teacher.forward_taps(images_for(teacher)[:1], list(teacher.taps))
    for tap, value in outputs.items():
        assert value.shape[1:] == teacher.taps[tap].shape, tap
    assert all(len(teacher.taps[f"s{n}"].shape) == 3 for n in (2, 3, 4))


def test_a_network_that_cannot_run_without_data_is_measured_on_a_blank_image() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            kept = 3 if float(images.sum()) == 0 else 2
            return {"out": self.weight[:kept].expand(len(images), kept)}

    assert measure_shapes(Branching(), 8) == {"out": (3,)}


def test_random_weights_are_the_same_at_every_call_and_called_random() -> None:
    first = load_teacher("timm:resnet10t", "random")
    torch.rand(3)
    second = load_teacher("timm:resnet10t", "random")
    assert first.weights.sha256 == second.weights.sha256
    assert first.weights.source == "random"


def test_random_weights_leave_the_global_random_state_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load_teacher("timm:resnet10t", "random")
    assert torch.equal(torch.rand(2), expected)


def test_a_file_in_timms_names_loads_and_a_foreign_head_is_taken_off(tmp_path: Path) -> None:
    model = timm.create_model("resnet10t", num_classes=5)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pth")
    teacher = load_teacher("timm:resnet10t", tmp_path / "weights.pth")
    assert "logits" not in teacher.taps
    assert teacher.weights.source == "file"
    with torch.no_grad():
        expected = model.eval().forward_features(images_for(teacher))
    torch.testing.assert_close(
        teacher.forward_taps(images_for(teacher), ["s4"])["s4"], expected, rtol=1e-4, atol=1e-4
    )


def test_a_file_of_another_network_fails(tmp_path: Path) -> None:
    torch.save(timm.create_model("convnext_atto").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(WeightsMismatchError, match="resnet10t"):
        load_teacher("timm:resnet10t", tmp_path / "weights.pth")


def test_its_own_preprocessing_is_used() -> None:
    facts = load_teacher("timm:mobilevit_xxs", "random").preprocessing
    assert (facts.size, facts.mean, facts.std) == (256, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture
def empty_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No cached downloads, no proxy, and a hub whose name nobody knows; returns the cache."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.invalid")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def test_without_a_network_there_is_one_sentence_at_once(empty_hub: Path) -> None:
    with pytest.raises(WeightsNotFoundError) as caught:
        load_teacher("timm:resnet10t.c3_in1k")
    assert caught.value.summary.startswith("the pretrained weights of timm:resnet10t.c3_in1k")
    assert "no network" in caught.value.facts["reason"]
    assert "--weights FILE" in caught.value.facts["or pass"]


def test_an_earlier_download_needs_no_network(empty_hub: Path) -> None:
    """The hub's cache: a revision by name, and the files of that revision."""
    repository = empty_hub / "models--timm--resnet10t.c3_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abc")
    files = repository / "snapshots" / "0123abc"
    files.mkdir(parents=True)
    model = timm.create_model("resnet10t")
    save_file(model.state_dict(), files / "model.safetensors")
    teacher = load_teacher("timm:resnet10t.c3_in1k")
    assert (teacher.weights.source, teacher.weights.file) == ("hub", "timm/resnet10t.c3_in1k")
    loaded = teacher.network.model.state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("weights", [None, "random"])
def test_a_tag_that_does_not_exist_is_told_with_those_that_do(weights: str | None) -> None:
    with pytest.raises(UnknownNameError, match="c3_in1k"):
        load_teacher("timm:resnet10t.nothing", weights)


def test_an_unknown_network_gets_near_names() -> None:
    with pytest.raises(UnknownNameError, match="resnet18"):
        load_teacher("timm:resnet19")
