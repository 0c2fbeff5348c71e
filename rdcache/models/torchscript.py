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
from rdcache.models.taps import TapNetwork
from rdcache.models.teacher import Teacher


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
    `input_size`.

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
    size = getattr(module, "input_size", DEFAULT_SIZE)
    if not isinstance(size, int) or size < 1:
        raise UsageError("input_size of this module is not a side in pixels.", input_size=size)
    return blackbox_teacher("torchscript", path, TorchScriptTaps(module), size)
