"""The catalogue of teachers: what it says without building a network, and whether it is true."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rdcache.errors import UnknownNameError, UsageError, WeightsNotFoundError
from rdcache.models import corpus_overlap, list_teachers, load_teacher
from rdcache.models.taps import measure_shapes

NAMES = (
    "pmc-clip",
    "rad-densenet",
    "rad-resnet50",
    "lvm-med-resnet50",
    "lvm-med",
    "efficientnet-lite0",
    "efficientnet-lite1",
    "efficientnet-lite2",
)
NEWER = (
    "medsam",
    "sam-med2d",
    "biomedclip",
    "rad-dino",
    "uni2",
    "virchow2",
    "retfound",
    "dinov3",
    "ct-fm",
    "suprem-unet",
    "suprem-swinunetr",
    "suprem-segresnet",
    "merlin",
    "sam-med3d",
)
CARDS = {card.name: card for card in list_teachers(Path("data"))}


def test_the_catalogue_holds_the_papers_teachers_and_the_offline_ones() -> None:
    assert tuple(CARDS) == (*NAMES, *NEWER)  # what the newer ones give: test_published_teachers.py


def test_a_card_tells_images_from_volumes() -> None:
    assert (CARDS["lvm-med"].dimensions, CARDS["lvm-med"].input_shape) == (2, (3, 224, 224))
    assert (CARDS["ct-fm"].dimensions, CARDS["ct-fm"].input_shape) == (3, (1, 32, 128, 128))
    assert CARDS["sam-med3d"].default_tap == "neck"
    assert CARDS["merlin"].default_tap == "s4"


@pytest.mark.parametrize("name", NAMES)
def test_the_declared_taps_are_the_networks_own(name: str) -> None:
    teacher = load_teacher(name, "random")
    measured = measure_shapes(teacher.network, teacher.preprocessing.size)
    assert measured == dict(CARDS[name].taps) == {n: t.shape for n, t in teacher.taps.items()}
    assert list(measured) == list(teacher.taps)
    assert teacher.default_tap == CARDS[name].default_tap == "s4"
    assert teacher.weights.source == "random"


def test_shapes_of_the_papers_teachers() -> None:
    resnet = {"s1": (256, 56, 56), "s2": (512, 28, 28), "s3": (1024, 14, 14), "s4": (2048, 7, 7)}
    assert CARDS["pmc-clip"].taps == resnet | {"pooled": (768,)}
    assert CARDS["rad-resnet50"].taps == resnet | {"pooled": (2048,)}
    assert CARDS["rad-densenet"].taps == resnet | {"s4": (1024, 7, 7), "pooled": (1024,)}
    assert CARDS["lvm-med"].taps["s4"] == (768, 14, 14)
    assert CARDS["lvm-med"].taps["tokens"] == (196, 768)


def test_tap_kinds_follow_from_names_and_shapes() -> None:
    taps = load_teacher("efficientnet-lite0").taps
    assert (taps["s4"].kind, taps["pooled"].kind, taps["logits"].kind) == (
        "map2d",
        "vector",
        "logits",
    )
    assert load_teacher("timm:vit_tiny_patch16_224", "random").taps["tokens"].kind == "tokens"


def test_a_card_tells_whether_the_weights_are_there(tmp_path: Path) -> None:
    (card,) = (card for card in list_teachers(tmp_path) if card.name == "rad-resnet50")
    assert card.expected_path == tmp_path / "weights" / "rad-resnet50" / "ResNet50.pt"
    assert not card.weights_present
    card.expected_path.parent.mkdir(parents=True)
    card.expected_path.touch()
    assert next(c for c in list_teachers(tmp_path) if c.name == "rad-resnet50").weights_present


@pytest.mark.parametrize(
    ("teacher", "dataset", "overlaps"),
    [
        ("lvm-med", "isic", True),
        ("lvm-med-resnet50", "isic", True),
        ("lvm-med", "isic-seg", True),
        ("lvm-med", "kvasir-seg", True),
        ("lvm-med", "msd:Task09_Spleen", True),
        ("lvm-med", "medmnist:dermamnist", True),
        ("medsam", "breastmnist", True),
        ("rad-dino", "chestmnist", True),
        ("lvm-med", "busi", False),
        ("lvm-med", "covid", False),
        ("lvm-med", "folder:/home/isic/pictures", False),
        ("pmc-clip", "isic", False),
        ("efficientnet-lite2", "isic", False),
    ],
)
def test_a_teacher_trained_on_the_dataset_is_known(
    teacher: str, dataset: str, overlaps: bool
) -> None:
    assert corpus_overlap(CARDS[teacher], dataset) is overlaps


def test_an_unknown_teacher_gets_near_names() -> None:
    with pytest.raises(UnknownNameError, match="lvm-med"):
        load_teacher("lvmmed")
    with pytest.raises(UnknownNameError, match="pmc-clip"):
        load_teacher("pmc_clip")


@pytest.mark.parametrize("device", ["foo", "cuda:99", "meta", "cpu:x"])
def test_a_device_that_is_not_there_is_one_sentence(device: str) -> None:
    with pytest.raises(UsageError, match="there is no device") as caught:
        load_teacher("efficientnet-lite0", "random", device=device)
    assert caught.value.facts["known"].startswith("auto, cpu")
    with pytest.raises(UsageError, match="there is no device"):
        load_teacher("efficientnet-lite0", "random").to(device)


def test_an_unknown_tap_is_refused_by_name() -> None:
    teacher = load_teacher("efficientnet-lite0")
    with pytest.raises(UnknownNameError, match="layer4"):
        teacher.forward_taps(torch.zeros(1, 3, 224, 224), ["layer4"])


def test_a_weight_file_that_is_not_there_is_named() -> None:
    with pytest.raises(WeightsNotFoundError, match=r"nowhere\.pth"):
        load_teacher("pmc-clip", "nowhere.pth")


def test_a_teacher_neither_trains_nor_updates_its_statistics() -> None:
    teacher = load_teacher("efficientnet-lite0")
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    output = teacher.forward_taps(torch.rand(2, 3, 224, 224), ["pooled"])["pooled"]
    assert not output.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    after = teacher.network.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_sample_alone_and_in_a_batch_gives_the_same_numbers() -> None:
    teacher = load_teacher("efficientnet-lite0")
    images = torch.rand(3, 3, 224, 224)
    together = teacher.forward_taps(images, ["s4"])["s4"]
    alone = teacher.forward_taps(images[1:2], ["s4"])["s4"]
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-4)
