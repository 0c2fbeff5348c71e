"""Models of unknown make whose outputs are the taps: what TorchScript and ONNX files share."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from pathlib import Path

import torch

from rdcache.errors import TeacherOutputError, UsageError, WeightsNotFoundError
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.taps import KIND_BY_DIMENSIONS, TapNetwork
from rdcache.models.teacher import Teacher, WeightsInfo
from rdcache.models.volume_preprocessing import VolumePreprocessing
from rdcache.models.weight_files import file_digest, is_there

DEFAULT_SIZE = 224
PROBE_BATCH = 2


def require_own_weights(file: str, weights: str | None) -> Path:
    """The file of a black box, which holds its weights itself.

    Raises:
        UsageError: other weights are asked for.
        WeightsNotFoundError: there is no such file.
    """
    if weights is not None:
        raise UsageError("the weights of an exported model are in its file.", weights=weights)
    path = Path(file)
    if not is_there(path):
        raise WeightsNotFoundError("there is no such model file.", looked_for=path)
    return path


def tap_names(outputs: Iterable[str]) -> dict[str, str]:
    """Tap name → output name, in the order of the outputs.

    A tap's name is also a file name, so `/layer4/Conv_output_0` becomes `layer4-Conv_output_0`.
    Names that are plain already stay; others that would be equal are numbered.
    """
    outputs = list(outputs)
    taken = set(outputs)
    names: dict[str, str] = {}
    for output in outputs:
        plain = re.sub(r"[^A-Za-z0-9._-]+", "-", output).lstrip("._-").rstrip("-") or "out"
        candidates = chain([plain], (f"{plain}-{number}" for number in count(2)))
        tap = output if plain == output else next(n for n in candidates if n not in taken)
        taken.add(tap)
        names[tap] = output
    return names


def named_outputs(outputs: object) -> dict[str, torch.Tensor]:
    """Outputs of a network by their own names (see `tap_names`), or as `out0`, `out1`, ….

    Raises:
        TeacherOutputError: something else than tensors comes out.
    """
    if isinstance(outputs, torch.Tensor):
        outputs = (outputs,)
    if isinstance(outputs, Mapping):
        by_name = {str(name): value for name, value in outputs.items()}
        named = {tap: by_name[name] for tap, name in tap_names(by_name).items()}
    elif isinstance(outputs, Sequence):
        named = {f"out{number}": value for number, value in enumerate(outputs)}
    else:
        named = {}
    if not named or not all(isinstance(value, torch.Tensor) for value in named.values()):
        raise TeacherOutputError(
            "this model returns something else than tensors.",
            got=type(outputs).__name__,
            expected="a tensor, a tuple of tensors, or a dict of them",
        )
    return named


def blackbox_teacher(
    family: str,
    path: Path,
    network: TapNetwork,
    preprocessing: Preprocessing | VolumePreprocessing,
    digest: str = "",
) -> Teacher:
    """Make a teacher of a network that is known by its behaviour only, after trying it out.

    Args:
        family: `torchscript` or `onnx`.
        digest: SHA-256 of its bytes, if they are more than those of `path`.
    """
    return Teacher(
        name=f"{family}:{path.name}",
        architecture=family,
        network=network.eval(),
        shapes=_probed_shapes(network, preprocessing.input_shape),
        preprocessing=preprocessing,
        weights=WeightsInfo(
            source="file",
            sha256=digest or file_digest(path),
            licence="as its provider says",
            file=path.name,
        ),
    )


def _probed_shapes(network: TapNetwork, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Run two blank images through the network and note the shape of each output per image.

    Args:
        shape: of an image or a volume: (3, S, S) or (C, D, H, W).
    """
    images = torch.zeros(PROBE_BATCH, *shape)
    try:
        with torch.no_grad():
            outputs = network(images)
    except TeacherOutputError:
        raise
    # A model of unknown make can fail in any way its maker has thought of.
    except Exception as error:
        raise TeacherOutputError(
            "this model does not run on the input that rdcache gives it.",
            input=f"float32 {tuple(images.shape)}{', RGB' if len(shape) == 3 else ''}",
            reason=(str(error) or type(error).__name__).strip().splitlines()[-1][:300],
        ) from error
    for name, value in outputs.items():
        dimensions = value.ndim - 1
        if dimensions not in KIND_BY_DIMENSIONS or len(value) != PROBE_BATCH or value.numel() == 0:
            raise TeacherOutputError(
                "an output of this model is not one tensor per image.",
                output=name,
                shape=tuple(value.shape),
                images=PROBE_BATCH,
            )
    return {name: tuple(value.shape[1:]) for name, value in outputs.items()}
