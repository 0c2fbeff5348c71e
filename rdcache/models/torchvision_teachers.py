"""Published medical weights of torchvision networks: RadImageNet, and LVM-Med's ResNet-50."""

from __future__ import annotations

import re
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torchvision.models import densenet121, resnet50

from rdcache.models.cards import LVM_MED_CORPORA, TeacherEntry
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.taps import TapNetwork
from rdcache.models.weight_files import Tensors, without_prefix

RESNET50_SHAPES = {
    "s1": (256, 56, 56),
    "s2": (512, 28, 28),
    "s3": (1024, 14, 14),
    "s4": (2048, 7, 7),
    "pooled": (2048,),
}
DENSENET121_SHAPES = {
    "s1": (256, 56, 56),
    "s2": (512, 28, 28),
    "s3": (1024, 14, 14),
    "s4": (1024, 7, 7),
    "pooled": (1024,),
}
IMAGENET_CLASSES = 1000
# RadImageNet keeps nn.Sequential(*children): 2 and 3 (ReLU, max pooling) have no tensors.
SEQUENTIAL_RESNET = {
    "0": "conv1",
    "1": "bn1",
    "4": "layer1",
    "5": "layer2",
    "6": "layer3",
    "7": "layer4",
}
# (image − 127.5)·2/255, read by OpenCV and so in the order blue, green, red.
RADIMAGENET_INPUT = Preprocessing(mean=(0.5,) * 3, std=(0.5,) * 3, channels="bgr")
RADIMAGENET_SOURCE = (
    "RadImageNet_pytorch.zip, linked from github.com/BMEII-AI/RadImageNet "
    "(mirror: Lab-Rasool/RadImageNet on the Hugging Face hub)"
)


class ResNet50Taps(TapNetwork):
    """torchvision's ResNet-50 without its classifier, under torchvision's names."""

    def __init__(self) -> None:
        super().__init__()
        for name, module in resnet50().named_children():
            if name not in ("avgpool", "fc"):
                self.add_module(name, module)

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`."""
        x = F.relu(self.get_submodule("bn1")(self.get_submodule("conv1")(images)))
        x = self.get_submodule("maxpool")(x)
        for number in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{number}")(x)
            yield f"s{number}", x
        yield "pooled", x.mean((2, 3))


class DenseNet121Taps(TapNetwork):
    """torchvision's DenseNet-121 without its classifier; `s4` is after the last norm and ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.features = densenet121().features

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`."""
        x = images
        for name, layer in self.features.named_children():
            x = layer(x)
            if name in ("denseblock1", "denseblock2", "denseblock3"):
                yield f"s{name[-1]}", x
        x = F.relu(x)
        yield "s4", x
        yield "pooled", x.mean((2, 3))


def rename_sequential_resnet(tensors: Tensors) -> Tensors:
    """`backbone.4.0.conv1.weight` → `layer1.0.conv1.weight`; torchvision's names stay."""
    renamed = {}
    for name, value in tensors.items():
        match = re.fullmatch(r"backbone\.(\d)\.(.+)", name)
        if match and match[1] in SEQUENTIAL_RESNET:
            name = f"{SEQUENTIAL_RESNET[match[1]]}.{match[2]}"
        renamed[name] = value
    return renamed


def rename_densenet(tensors: Tensors) -> Tensors:
    """`backbone.0.` → `features.`, and old torchvision's `norm.1` → `norm1`."""
    return {
        re.sub(r"(norm|conv)\.(\d)", r"\1\2", re.sub(r"^backbone\.0\.", "features.", name)): value
        for name, value in tensors.items()
    }


def imagenet_classifier(tensors: Tensors) -> str:
    """Recognise torchvision's own weights, whose names a copy of RadImageNet's may have too."""
    for name in ("fc.weight", "classifier.weight"):
        if name in tensors and tensors[name].shape[:1] == (IMAGENET_CLASSES,):
            return f"a network with a classifier of ImageNet's {IMAGENET_CLASSES} classes ({name})"
    return ""


def rename_nothing(tensors: Tensors) -> Tensors:
    """The file is in torchvision's names."""
    return without_prefix(tensors, "module.")


ENTRIES = (
    TeacherEntry(
        name="rad-densenet",
        title="RadImageNet DenseNet-121",
        architecture="torchvision/densenet121",
        build=DenseNet121Taps,
        rename=rename_densenet,
        foreign=imagenet_classifier,
        shapes=DENSENET121_SHAPES,
        preprocessing=RADIMAGENET_INPUT,
        licence="research/unclear",
        source=RADIMAGENET_SOURCE,
        file="DenseNet121.pt",
        corpora=frozenset({"radimagenet"}),
    ),
    TeacherEntry(
        name="rad-resnet50",
        title="RadImageNet ResNet-50",
        architecture="torchvision/resnet50",
        build=ResNet50Taps,
        rename=rename_sequential_resnet,
        foreign=imagenet_classifier,
        shapes=RESNET50_SHAPES,
        preprocessing=RADIMAGENET_INPUT,
        licence="research/unclear",
        source=RADIMAGENET_SOURCE,
        file="ResNet50.pt",
        corpora=frozenset({"radimagenet"}),
    ),
    TeacherEntry(
        name="lvm-med-resnet50",
        title="LVM-Med ResNet-50",
        architecture="torchvision/resnet50",
        build=ResNet50Taps,
        rename=rename_nothing,
        shapes=RESNET50_SHAPES,
        preprocessing=Preprocessing(),
        licence="CC-BY-NC-SA-4.0",
        source="the links in the README of github.com/duyhominhnguyen/LVM-Med",
        file="lvmmed_resnet.torch",
        corpora=LVM_MED_CORPORA,
    ),
)
