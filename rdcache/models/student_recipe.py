"""How a library's network becomes a student: built under its own names, loaded, and then cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rdcache.models.backbones import Backbone
from rdcache.models.decoders import Decoder
from rdcache.models.preprocessing import IMAGENET_MEAN, IMAGENET_STD
from rdcache.models.student import StudentCard, StudentInput
from rdcache.models.weight_files import Rename, Tensors

IMAGENET_INPUT = StudentInput(224, IMAGENET_MEAN, IMAGENET_STD)
Parts = tuple[Backbone, Decoder | None]


def unchanged(tensors: dict[str, Any]) -> dict[str, Any]:
    """The names of a file are those of the network."""
    return tensors


@dataclass(frozen=True)
class StudentRecipe:
    """One kind of student.

    Attributes:
        build: the network without its last layer, untrained, from the channels of its input. Its
            tensors are named otherwise once it is cut, so files in the library's names load
            before.
        pretrained: the same with ImageNet weights, or None where there are none.
        cut: the network's backbone, and a decoder if it segments.
        expected: what its input has to be; of one channel, where it takes several numbers of them.
        channels: numbers of channels that it can be built for; the first is the default.
        rename: from the names of a published file to those of the network.
        foreign: says which other network a file's tensors are, or `""`; for look-alikes that would
            load.
    """

    card: StudentCard
    build: Callable[[int], nn.Module]
    pretrained: Callable[[], nn.Module] | None
    cut: Callable[[Any], Parts]
    expected: StudentInput = IMAGENET_INPUT
    channels: tuple[int, ...] = (3,)
    rename: Rename = unchanged
    foreign: Callable[[Tensors], str] = field(default=lambda tensors: "")
