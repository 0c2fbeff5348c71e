"""Students beside torchvision's classifiers: sizes, shapes, files, references."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch

from rdcache.errors import (
    UnknownNameError,
    UsageError,
    WeightsMismatchError,
    WeightsNotFoundError,
)
from rdcache.models import (
    create_student,
    list_students,
    lite_students,
    load_student,
    load_teacher,
    require_fit,
    save_student,
)
from rdcache.models.decoders import WIDTHS, UNetDecoder
from rdcache.models.volume_students import UNET_WIDTHS, monai_networks

CARDS = {card.name: card for card in list_students()}
PARAMETERS = {
    "efficientnet-lite0": 3_371_008,
    "vit-tiny": 5_524_032,  # timm's 5,524,416 without the class token and its place
    "unet-resnet18": 12_156_608,
    "unet-mobilenet": 3_655_552,
    "unet-shufflenet": 2_631_140,
    "unet-shufflenet-x0.5": 1_562_656,
    "unet-vit-tiny": 6_223_872,
    "resnet3d-18": 33_160_000,
    "unet3d": 5_658_864,
}


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("name", PARAMETERS)
def test_sizes_and_shapes_are_as_declared(name: str) -> None:
    student, card = create_student(name, 3).eval(), CARDS[name]
    counted = sum(p.numel() for key, p in student.named_parameters() if "classifier" not in key)
    assert counted == card.parameters == PARAMETERS[name]
    assert (student.task_kind, student.dimensions) == (card.task_kind, card.dimensions)
    sides = (64, 32) if card.dimensions == 2 else (32, 16, 48)
    with torch.no_grad():
        output = student(noise(2, student.channels, *sides), tuple(card.stages))
    assert list(student.stages.items()) == list(card.stages.items())
    for stage, (channels, stride) in card.stages.items():
        reduced = (-(-side // stride) for side in sides)
        assert output.stages[stage].shape == (2, channels, *reduced)
    assert output.features.shape == (2, card.feature_dim)
    positions = sides if card.task_kind == "segmentation" else ()
    assert output.logits.shape == (2, 3, *positions)
    torch.testing.assert_close(output.features, output.stages["s4"].flatten(2).mean(2))


@pytest.mark.parametrize("name", ["vit-tiny", "unet-shufflenet-x0.5", "unet3d"])
def test_a_saved_student_of_any_kind_comes_back_the_same(name: str, tmp_path: Path) -> None:
    channels = 2 if CARDS[name].dimensions == 3 else None
    student = create_student(name, 2, channels=channels)
    images = noise(2, student.channels, *[32] * student.dimensions)
    student(images)  # moves the running statistics
    save_student(student, tmp_path / "student.safetensors")
    loaded = load_student(tmp_path / "student.safetensors")
    assert loaded.architecture == student.architecture
    assert (loaded.channels, len(loaded.mean), len(loaded.std)) == (student.channels,) * 3
    with torch.no_grad():
        assert torch.equal(loaded(images).logits, student.eval()(images).logits)


def test_a_classifier_starts_the_encoder_of_its_u_net(tmp_path: Path) -> None:
    classifier = create_student("shufflenet-x0.5", 5).eval()
    save_student(classifier, tmp_path / "classifier.safetensors")
    unet = create_student("unet-shufflenet-x0.5", 2, tmp_path / "classifier.safetensors").eval()
    images = noise(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(unet(images).features, classifier(images).features)
        save_student(unet, tmp_path / "unet.safetensors")
        again = create_student("unet-shufflenet-x0.5", 4, tmp_path / "unet.safetensors").eval()
        assert torch.equal(again.decoder(unet.backbone(images, unet.stages)[1]), decoded(unet))


def decoded(unet: torch.nn.Module) -> torch.Tensor:
    return unet.decoder(unet.backbone(noise(2, 3, 32, 32), unet.stages)[1])  # type: ignore[operator,union-attr]


def test_efficientnet_lite0_begins_as_the_teacher_of_that_name() -> None:
    student = create_student("efficientnet-lite0", 3, "imagenet").eval()
    images = noise(1, 3, 224, 224)
    taps = load_teacher("efficientnet-lite0").forward_taps(images, [*student.stages, "pooled"])
    with torch.no_grad():
        output = student(images, tuple(student.stages))
    for stage, maps in output.stages.items():
        torch.testing.assert_close(maps, taps[stage], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(output.features, taps["pooled"], rtol=1e-3, atol=1e-3)


def test_timms_own_file_starts_efficientnet_lite0(tmp_path: Path) -> None:
    network = timm.create_model("tf_efficientnet_lite0").eval()
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    student = create_student("efficientnet-lite0", 3, tmp_path / "timm.pth").eval()
    images = noise(1, 3, 64, 64)
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(images), pre_logits=True)
        torch.testing.assert_close(student(images).features, expected)


def test_an_efficientnet_b0_is_not_taken_for_a_lite_one(tmp_path: Path) -> None:
    torch.save(timm.create_model("efficientnet_b0").state_dict(), tmp_path / "b0.pth")
    with pytest.raises(WeightsMismatchError, match="efficientnet-lite0") as caught:
        create_student("efficientnet-lite0", 3, tmp_path / "b0.pth")
    assert "squeeze-and-excitation" in str(caught.value)


def test_without_the_package_the_weights_of_efficientnet_lite0_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lite_students, "packaged_file", lambda variant: None)
    with pytest.raises(WeightsNotFoundError, match="not installed") as caught:
        create_student("efficientnet-lite0", 3, "imagenet")
    assert "rdcache[demo]" in str(caught.value)


@pytest.mark.parametrize("side", [32, 224])
def test_vit_tiny_is_timms(side: int, tmp_path: Path) -> None:
    network = timm.create_model(
        "vit_tiny_patch16_224",
        num_classes=3,
        class_token=False,
        global_pool="avg",
        fc_norm=False,
        dynamic_img_size=True,
    ).eval()
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    student = create_student("vit-tiny", 3, tmp_path / "timm.pth").eval()
    student.classifier.load_state_dict(network.head.state_dict())
    images = noise(1, 3, side, side)
    with torch.no_grad():
        torch.testing.assert_close(student(images).logits, network(images))


def test_weights_with_a_class_token_are_a_start_without_it(tmp_path: Path) -> None:
    network = timm.create_model("vit_tiny_patch16_224")
    torch.save(network.state_dict(), tmp_path / "timm.pth")
    student = create_student("unet-vit-tiny", 2, tmp_path / "timm.pth")
    own = dict(student.backbone.named_parameters())
    assert torch.equal(own["segments.s1.0.positions"], network.pos_embed[:, 1:])
    assert torch.equal(own["segments.s4.norm.weight"], network.norm.weight)
    assert torch.equal(
        own["segments.s2.blocks.0.attn.qkv.weight"], network.blocks[3].attn.qkv.weight
    )


def test_the_decoder_of_a_u_net_is_monais() -> None:
    stages = {"s0": (4, 2), "s1": (5, 4), "s2": (6, 8), "s3": (7, 16), "s4": (8, 32)}
    decoder = UNetDecoder(stages, ("s4", "s3", "s2", "s1", "s0")).eval()
    theirs = monai_networks("flexible_unet").UNetDecoder(
        spatial_dims=2,
        encoder_channels=(3, *(channels for channels, _ in stages.values())),
        decoder_channels=WIDTHS,
        act=("relu", {"inplace": True}),
        norm="batch",
        dropout=0.0,
        bias=False,
        upsample="nontrainable",
        pre_conv=None,
        interp_mode="nearest",
        align_corners=None,
        is_pad=False,
    )
    tensors = decoder.state_dict().values()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), tensors, strict=True)))
    maps = {name: noise(2, channels, 64 // at, 64 // at) for name, (channels, at) in stages.items()}
    with torch.no_grad():
        expected = theirs.eval()([torch.empty(0), *maps.values()])
        torch.testing.assert_close(decoder(maps), expected)


def test_students_of_volumes_are_monais(tmp_path: Path) -> None:
    classifier = monai_networks("resnet").resnet18(
        n_input_channels=2,
        num_classes=3,
        conv1_t_stride=2,
        bias_downsample=False,
        shortcut_type="B",
    )
    segmenter = monai_networks("basic_unet").BasicUNet(
        in_channels=2,
        out_channels=3,
        features=(*UNET_WIDTHS, 16),
        norm=("group", {"num_groups": 8}),
    )
    heads = {"resnet3d-18": "fc", "unet3d": "final_conv"}
    for (name, head), network in zip(heads.items(), (classifier, segmenter), strict=True):
        torch.save(network.state_dict(), tmp_path / "monai.pth")
        student = create_student(name, 3, tmp_path / "monai.pth", channels=2).eval()
        student.classifier.load_state_dict(getattr(network, head).state_dict())
        volumes = noise(1, 2, 32, 32, 32)
        with torch.no_grad():
            torch.testing.assert_close(student(volumes).logits, network.eval()(volumes))


def test_the_shortcuts_of_medicalnet_do_not_fit(tmp_path: Path) -> None:
    """They have no weights, and MONAI's detach what they pass on."""
    network = monai_networks("resnet").resnet18(n_input_channels=1, shortcut_type="A")
    torch.save(network.state_dict(), tmp_path / "medicalnet.pth")
    with pytest.raises(WeightsMismatchError, match="resnet3d-18"):
        create_student("resnet3d-18", 2, tmp_path / "medicalnet.pth")


def test_a_patch_of_one_voxel_at_the_deepest_stage_trains() -> None:
    student = create_student("unet3d", 2)
    assert student(noise(1, 1, 16, 16, 16)).logits.shape == (1, 2, 16, 16, 16)


@pytest.mark.parametrize(
    ("name", "shape", "multiple"),
    [
        ("unet-shufflenet-x0.5", (1, 3, 32, 40), 32),
        ("vit-tiny", (1, 3, 40, 32), 16),
        ("unet3d", (1, 1, 16, 16, 24), 16),
    ],
)
def test_sizes_that_do_not_divide_are_refused(
    name: str, shape: tuple[int, ...], multiple: int
) -> None:
    given = re.escape("×".join(map(str, shape[2:])))
    with pytest.raises(UsageError, match=rf"multiples of {multiple}[\s\S]*{given}"):
        create_student(name, 2)(torch.zeros(shape))


def test_channels_are_three_for_images_and_up_to_four_for_volumes() -> None:
    assert create_student("unet3d", 2).channels == 1
    four = create_student("unet3d", 2, channels=4)
    assert (four.channels, len(four.mean)) == (4, 4)
    with pytest.raises(UsageError, match="5 channels"):
        create_student("unet3d", 2, channels=5)
    with pytest.raises(UsageError, match="1 channels"):
        create_student("shufflenet-x0.5", 2, channels=1)


def test_volumes_have_no_imagenet() -> None:
    with pytest.raises(UsageError, match="no ImageNet weights"):
        create_student("unet3d", 2, "imagenet")


@pytest.mark.parametrize(
    ("name", "task", "dimensions", "right"),
    [
        ("shufflenet", "segmentation", 2, "unet-shufflenet"),
        ("vit-tiny", "segmentation", 2, "unet-vit-tiny"),
        ("unet-mobilenet", "multiclass", 2, "mobilenet"),
        ("unet-resnet18", "multilabel", 3, "resnet3d-18"),
        ("shufflenet", "segmentation", 3, "unet3d"),
        ("resnet3d-18", "multiclass", 2, "resnet18"),
        ("timm:resnet10t", "segmentation", 2, "unet-resnet18"),
    ],
)
def test_a_student_of_another_kind_is_refused_and_the_right_one_named(
    name: str, task: str, dimensions: int, right: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(name)) as caught:
        require_fit(name, task, dimensions)
    assert caught.value.facts["next"] == f"--student {right}"


def test_students_that_fit_are_let_through() -> None:
    for name, card in CARDS.items():
        task = "segmentation" if card.task_kind == "segmentation" else "multilabel"
        require_fit(name, task, card.dimensions)
    require_fit("timm:resnet10t", "multiclass", 2)
    with pytest.raises(UnknownNameError, match="unet3d"):
        require_fit("unet3", "segmentation", 3)
