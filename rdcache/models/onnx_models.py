"""An ONNX file as a teacher, run by onnxruntime: its named outputs are the taps."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from rdcache.errors import (
    UnsafeFileError,
    UsageError,
    WeightsMismatchError,
    WeightsNotFoundError,
    reason_of,
)
from rdcache.models.blackboxes import (
    DEFAULT_SIZE,
    blackbox_teacher,
    named_outputs,
    require_own_weights,
    tap_names,
)
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.taps import TapNetwork
from rdcache.models.teacher import Teacher
from rdcache.models.volume_preprocessing import VolumePreprocessing
from rdcache.models.weight_files import file_digest, is_there

INPUT_TYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16}
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class OnnxTaps(TapNetwork):
    """An onnxruntime session; images go to it and come back through NumPy.

    Args:
        batch: the batch size that the file is exported for, or None for any.
    """

    compilable = False

    def __init__(self, session: Any, dtype: torch.dtype, batch: int | None) -> None:
        super().__init__()
        self.session = session
        self.dtype = dtype
        self.batch = batch
        self.input = session.get_inputs()[0].name
        self.outputs = tap_names(output.name for output in session.get_outputs())

    @property
    def provider(self) -> str:
        """What onnxruntime computes with, such as `CPUExecutionProvider`."""
        return str(self.session.get_providers()[0])

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`."""
        yield from self._run(images, list(self.outputs)).items()

    def forward(
        self, images: torch.Tensor, names: Collection[str] | None = None
    ) -> dict[str, torch.Tensor]:
        """As `TapNetwork.forward`; onnxruntime leaves out what the asked outputs do not need."""
        return self._run(images, list(self.outputs if names is None else names))

    def _run(self, images: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
        parts = [self._run_batch(part, names) for part in images.split(self.batch or len(images))]
        return {name: torch.cat([part[name] for part in parts]) for name in names}

    def _run_batch(self, images: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
        count = len(images)
        if self.batch is not None and count < self.batch:  # a last batch, filled up with blanks
            images = torch.cat([images, images.new_zeros(self.batch - count, *images.shape[1:])])
        feed = {self.input: images.to("cpu", self.dtype).numpy()}
        values = self.session.run([self.outputs[name] for name in names], feed)
        tensors = [torch.from_numpy(value) for value in values]
        named = named_outputs(dict(zip(names, tensors, strict=True)))
        return {name: value[:count].to(images.device) for name, value in named.items()}


def load_onnx_teacher(file: str, weights: str | None) -> Teacher:
    """Build `onnx:FILE`.

    The input is one RGB batch (B, 3, S, S) with ImageNet's normalisation; S is the file's fixed
    size, else 224. Or it is one batch of volumes (B, C, D, H, W) of a fixed size, in 0…1 by the
    dataset's intensity rule.

    Raises:
        UsageError: onnxruntime is not installed, or the input is neither of the two.
        WeightsNotFoundError: there is no such file, or a file of external data is missing.
        WeightsMismatchError: it is not an ONNX file.
        UnsafeFileError: its external data lie outside its folder.
        TeacherOutputError: it does not run, or an output is not one tensor per image.
    """
    path = require_own_weights(file, weights)
    digest = _digest(path)
    runtime = _require("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    available = set(runtime.get_available_providers())
    try:
        session = runtime.InferenceSession(
            str(path), options, providers=[name for name in PROVIDERS if name in available]
        )
    # onnxruntime's error classes are not public; each derives from Exception directly.
    except Exception as error:
        raise WeightsMismatchError(
            "onnxruntime cannot load this file.", file=path, reason=reason_of(error)
        ) from error
    dtype, batch, preprocessing = _input(session, path)
    return blackbox_teacher("onnx", path, OnnxTaps(session, dtype, batch), preprocessing, digest)


def _input(
    session: Any, path: Path
) -> tuple[torch.dtype, int | None, Preprocessing | VolumePreprocessing]:
    """Dtype, fixed batch size or None, and what the one input is made of.

    Dynamic dimensions are names or None.
    """
    inputs = session.get_inputs()
    described = ", ".join(f"{i.name} {i.type} {i.shape}" for i in inputs)
    shape = inputs[0].shape if inputs else []
    sizes = [size for size in shape[2:] if isinstance(size, int)]
    one = len(inputs) == 1 and inputs[0].type in INPUT_TYPES
    of_images = (
        len(shape) == 4
        and (shape[1] == 3 or not isinstance(shape[1], int))
        and len(set(sizes)) <= 1
    )
    of_volumes = len(shape) == 5 and len(sizes) == 3 and isinstance(shape[1], int)
    if not one or not (of_images or of_volumes):
        raise UsageError(
            "this ONNX model takes neither square RGB images nor volumes of a fixed size.",
            file=path,
            inputs=described,
            expected="one input, float (B, 3, S, S), or (B, C, D, H, W) with numbers for all but B",
        )
    preprocessing: Preprocessing | VolumePreprocessing
    if of_volumes:
        preprocessing = VolumePreprocessing((sizes[0], sizes[1], sizes[2]), shape[1])
    else:
        preprocessing = Preprocessing(size=sizes[0] if sizes else DEFAULT_SIZE)
    batch = shape[0] if isinstance(shape[0], int) else None
    return INPUT_TYPES[inputs[0].type], batch, preprocessing


def _digest(path: Path) -> str:
    """SHA-256 of the model's file and of the files its external data lie in.

    Raises:
        UnsafeFileError: external data outside the model's folder.
    """
    onnx = _require("onnx")
    try:
        model = onnx.load(str(path), load_external_data=False)
    # A damaged file fails in protobuf, whose error class depends on its implementation.
    except Exception as error:
        raise WeightsMismatchError("this is not an ONNX file.", file=path) from error
    digest = hashlib.sha256(file_digest(path).encode())
    for location in sorted(_external_files(onnx, model)):
        if Path(location).is_absolute() or ".." in Path(location).parts:
            raise UnsafeFileError(
                "this ONNX model reads data outside its folder.", file=path, data=location
            )
        # Links are followed, of the model and of its data: a Hugging Face cache consists of them.
        data = path.parent / location
        if not is_there(data):
            raise WeightsNotFoundError(
                "a part of this ONNX model is missing.", looked_for=data, model=path
            )
        digest.update(file_digest(data).encode())
    return digest.hexdigest()


def count_numbers(path: Path) -> tuple[int, int]:
    """How many floating-point numbers the initialisers of an ONNX file hold, and how many bytes the
    file and those of its external data have.
    """
    onnx = _require("onnx")
    model = onnx.load(str(path), load_external_data=False)
    floating = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}
    numbers = sum(
        math.prod(tensor.dims) for tensor in model.graph.initializer if tensor.data_type in floating
    )
    files = [path, *(path.parent / location for location in _external_files(onnx, model))]
    return numbers, sum(file.stat().st_size for file in files)


def _external_files(onnx: Any, model: Any) -> set[str]:
    nodes = [node for function in model.functions for node in function.node]
    return {
        entry.value
        for tensor in (*_tensors(model.graph), *_tensors_of_nodes(nodes))
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(graph: Any) -> Iterator[Any]:
    """Every constant of a graph: its initializers and those inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _tensors_of_nodes(graph.node)


def _tensors_of_nodes(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for graph in (attribute.g, *attribute.graphs):
                yield from _tensors(graph)


def _require(package: str) -> Any:
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"ONNX teachers need the package {package}.", next="pip install 'rdcache[onnx]'"
        ) from error
