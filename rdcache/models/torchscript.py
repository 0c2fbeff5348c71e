"""A TorchScript file as a teacher: whatever it returns are the taps."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch

from rdcache.errors import UsageError, WeightsMismatchError
from rdcache.models.blackboxes import (
    DEFAULT_SIZE,
    blackbox_teacher,
    named_outputs,
    require_own_weights,
)
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.taps import TapNetwork
from rdcache.models.teacher import Teacher
from rdcache.models.volume_preprocessing import VolumePreprocessing


class TorchScriptTaps(TapNetwork):
    """A scripted or traced module; a dict names its outputs, a tuple numbers them."""

    compilable = False

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.module = module

    def taps(self, images: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """See `TapNetwork.taps`."""
        yield from named_outputs(self.module(images)).items()


def load_torchscript_teacher(file: str, weights: str | None) -> Teacher:
    """Build `torchscript:FILE`.

    The file is a program and runs with the user's rights: load only what you trust. The input is
    RGB with ImageNet's normalisation, 224 px wide unless the module has an integer attribute
    `input_size`. Of a network of volumes, `input_size` is three integers, the voxels along z, y
    and x; its input is in 0…1 by the dataset's intensity rule, of one channel unless the module
    has an integer attribute `input_channels`.

    Raises:
        WeightsNotFoundError: there is no such file.
        WeightsMismatchError: it is not a TorchScript file.
        TeacherOutputError: it does not run on such an input, or returns no tensors.
    """
    path = require_own_weights(file, weights)
    try:
        with warnings.catch_warnings():
            # Deprecated for new exports in favour of torch.export; the files that exist remain.
            warnings.simplefilter("ignore", FutureWarning)
            module = torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        raise WeightsMismatchError(
            "this is not a TorchScript file.",
            file=path,
            expected="what torch.jit.trace(model, example).save(FILE) writes",
        ) from error
    return blackbox_teacher("torchscript", path, TorchScriptTaps(module), _input(module))


def _input(module: torch.jit.ScriptModule) -> Preprocessing | VolumePreprocessing:
    size = getattr(module, "input_size", DEFAULT_SIZE)
    sides = size if isinstance(size, list | tuple) else [size]
    channels = getattr(module, "input_channels", 1)
    numbers = [*sides, channels]
    if len(sides) not in (1, 3) or not all(isinstance(n, int) and n > 0 for n in numbers):
        raise UsageError(
            "input_size of this module is neither a side in pixels nor three sides in voxels.",
            input_size=size,
            input_channels=channels,
        )
    if len(sides) == 1:
        return Preprocessing(size=sides[0])
    return VolumePreprocessing((sides[0], sides[1], sides[2]), channels)
