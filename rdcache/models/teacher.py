"""A frozen teacher: images in, named tensors out, and the facts that identify it.

How a network is built and its weights found is the part of the teachers' own files.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rdcache.errors import UnknownNameError, UsageError
from rdcache.models.compiling import memory_format_of
from rdcache.models.devices import choose_device
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.taps import TapNetwork, default_tap, tap_specs
from rdcache.models.volume_preprocessing import VolumePreprocessing

RANDOM = "random"


@dataclass(frozen=True)
class WeightsInfo:
    """Where a teacher's numbers come from.

    Attributes:
        source: `file`, `package`, `hub`, `random` or `adapted`.
        sha256: over the tensors (name, dtype, shape, bytes), so that one set of weights in two
            files is one teacher; over the file's bytes for TorchScript and ONNX.
        licence: class of the licence, such as `Apache-2.0` or `research/unclear`.
        file: base name of the weight file; the hub's name, or `""` for random weights.
        matched: how many of the network's tensors the file gave, as `320 of 320`.
    """

    source: str
    sha256: str
    licence: str
    file: str = ""
    matched: str = ""

    @property
    def warning(self) -> str:
        """What a user should know of tensors that stayed as they were drawn; `""` if none did."""
        if self.source == RANDOM:
            return "the teacher's weights are random: its tensors mean nothing"
        matched, _, expected = self.matched.partition(" of ")
        if matched == expected or not expected:
            return ""
        return f"{self.file} has {self.matched} of the teacher's tensors; the others are random"

    def to_dict(self) -> dict[str, Any]:
        """All attributes as JSON values, for the manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Adaptation:
    """What a teacher was adapted to, and how; see `rdcache.models.adapters`.

    Attributes:
        method: as `lora`.
        options: of the method, settled.
        teacher: name of the teacher that was adapted, without folders of this machine.
        teacher_sha256: digest of its weights.
        teacher_source: where they came from, see `WeightsInfo`.
        dataset: name of the dataset, without folders of this machine.
        dataset_digest: of its images, labels and splits.
        classes: in the order of the logits.
    """

    method: str
    options: Mapping[str, Any]
    teacher: str
    teacher_sha256: str
    teacher_source: str
    dataset: str
    dataset_digest: str
    classes: tuple[str, ...]


class Teacher:
    """A frozen network with declared taps. See `load_teacher`.

    Attributes:
        name: as given to `load_teacher`, without folders of this machine.
        architecture: identifies the computation, apart from the weights.
        taps: every tap with the shape of one sample at the teacher's input size.
        default_tap: the tap that reprogramming starts from: the last map.
        preprocessing: how its input is made, from RGB images or from volumes.
        weights: where its numbers come from.
        adaptation: what it was adapted to, if it was: its `logits` are of those classes then.
        memory_format: how its maps lie in memory, inside.
        compiled: whether it computes by a compiled program.
    """

    def __init__(
        self,
        name: str,
        architecture: str,
        network: TapNetwork,
        shapes: Mapping[str, tuple[int, ...]],
        preprocessing: Preprocessing | VolumePreprocessing,
        weights: WeightsInfo,
        adaptation: Adaptation | None = None,
    ) -> None:
        self.name = name
        self.architecture = architecture
        self.network = network.eval().requires_grad_(False)
        self.memory_format = memory_format_of(network)
        if self.memory_format == torch.channels_last:
            self.network.to(memory_format=self.memory_format)
        self.taps = tap_specs(shapes)
        self.default_tap = default_tap(shapes)
        self.preprocessing = preprocessing
        self.weights = weights
        self.adaptation = adaptation
        self.device = torch.device("cpu")
        self.compiled = False
        self._forward: Callable[..., dict[str, torch.Tensor]] = self.network

    def __repr__(self) -> str:
        return f"Teacher({self.name!r}, weights={self.weights.source!r}, device={self.device})"

    @property
    def dimensions(self) -> int:
        """Of what it looks at: 2 for images, 3 for volumes."""
        return self.preprocessing.dimensions

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one sample at its input: (3, S, S), or (C, D, H, W)."""
        return self.preprocessing.input_shape

    @property
    def of_images(self) -> Preprocessing:
        """How its input is made, where only images will do.

        Raises:
            UsageError: it looks at volumes.
        """
        if isinstance(self.preprocessing, Preprocessing):
            return self.preprocessing
        raise UsageError(f"{self.name} looks at volumes; this needs a teacher of images.")

    @property
    def of_volumes(self) -> VolumePreprocessing:
        """How its input is made, where only volumes will do.

        Raises:
            UsageError: it looks at images.
        """
        if isinstance(self.preprocessing, VolumePreprocessing):
            return self.preprocessing
        raise UsageError(f"{self.name} looks at images; this needs a teacher of volumes.")

    def to(self, device: torch.device | str) -> Teacher:
        """Move the network to a device, in place.

        Raises:
            UsageError: no such device.
        """
        self.device = choose_device(device)
        self.network.to(self.device)
        return self

    def compile(self) -> Teacher:
        """Compute by a compiled program from now on, in place; it is made at the first forward.

        Raises:
            UsageError: the network is an exported program.
        """
        if not getattr(self.network, "compilable", True):
            raise UsageError(
                f"{self.name} is an exported program, which PyTorch cannot compile.",
                next="leave out --compile",
            )
        self._forward = self.network.compiled()
        self.compiled = True
        return self

    def uncompiled(self) -> Teacher:
        """The same network, not compiled; this teacher stays as it is."""
        plain = copy.copy(self)
        plain._forward, plain.compiled = self.network, False
        return plain

    @torch.no_grad()
    def forward_taps(self, images: torch.Tensor, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Compute the taps asked for in one forward pass, and nothing beyond them.

        Args:
            images: float32 (B, *input_shape), normalised by `preprocessing`, on `device`.
            names: tap names, each at most once.

        Returns:
            Tap name → contiguous tensor (B, *shape), in the order of `names`.

        Raises:
            UnknownNameError: the teacher has no such tap.
        """
        for name in names:
            if name not in self.taps:
                raise UnknownNameError.of(f"tap of {self.name}", name, self.taps)
        images = images.contiguous(
            memory_format=self.memory_format if images.ndim == 4 else torch.contiguous_format
        )
        outputs = self._forward(images, tuple(names))
        return {name: value.contiguous() for name, value in outputs.items()}
