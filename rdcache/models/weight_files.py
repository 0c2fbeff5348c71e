"""Reading weight files without running what is in them, and telling whether they fit a network.

A file is safetensors, or a PyTorch file that `torch.load(weights_only=True)` accepts. Which
published name belongs to which tensor of a network is each teacher's own part.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from rdcache.errors import UnsafeFileError, WeightsMismatchError, WeightsNotFoundError, reason_of

Tensors = dict[str, torch.Tensor]
Rename = Callable[[Tensors], Tensors]

REQUIRED_MATCH = 0.99
# Keys under which training scripts keep the state dict beside optimizer state, epoch and the like.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "teacher")
SAVE_SAFELY = "where you trust the file: torch.save(model.state_dict(), FILE), then --weights FILE"


def is_there(path: Path) -> bool:
    """Whether a weight file exists.

    Raises:
        WeightsNotFoundError: nobody can tell, as a folder above it may not be read.
    """
    try:
        return path.is_file()
    except OSError as error:
        raise WeightsNotFoundError(
            "a folder of weights cannot be read.",
            looked_for=path,
            why=error.strerror,
            next="give yourself leave to read it, or pass --weights FILE",
        ) from error


def read_tensors(path: Path) -> Tensors:
    """Read the named tensors of a weight file onto the CPU.

    Raises:
        WeightsNotFoundError: there is no such file.
        UnsafeFileError: the file holds pickled objects other than tensors; none is run.
        WeightsMismatchError: the file holds no named tensors, or is damaged.
    """
    if not is_there(path):
        raise WeightsNotFoundError("there is no such weight file.", looked_for=path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():
            # How a file is written is told by an error below, or does not matter.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            "this weight file holds pickled Python objects, which rdcache does not run.",
            file=path,
            instead=SAVE_SAFELY,
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise WeightsMismatchError(
            "this is not a readable weight file.",
            file=path,
            reason=reason_of(error),
            expected="safetensors, or a state dict saved by torch.save "
            "(a TorchScript file is named torchscript:FILE)",
        ) from error
    return named_tensors(content, path)


def named_tensors(content: object, path: Path) -> Tensors:
    """Find the state dict in what a file holds, below the usual wrappers."""
    while isinstance(content, Mapping):
        tensors = {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)}
        if tensors:
            return tensors
        content = next(
            (content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), None
        )
    raise WeightsMismatchError("this weight file holds no named tensors.", file=path)


def without_prefix(tensors: Tensors, *prefixes: str) -> Tensors:
    """Strip each prefix in turn, where every tensor has it."""
    for prefix in prefixes:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def load_matching(network: nn.Module, tensors: Tensors, path: Path, title: str) -> int:
    """Copy tensors into a network by name and shape; return how many of them matched.

    Batch counters (`num_batches_tracked`) do not count: older files lack them and no output
    depends on them.

    Args:
        tensors: named as in `network.state_dict()`; tensors the network lacks are ignored.
        title: what the network is, for the error.

    Raises:
        WeightsMismatchError: fewer than 99 % of the network's tensors have a counterpart.
    """
    expected = weight_tensors(network)
    matching = {
        name: tensors[name]
        for name, value in expected.items()
        if name in tensors and tensors[name].shape == value.shape
    }
    if len(matching) < REQUIRED_MATCH * len(expected):
        raise _mismatch(expected, tensors, len(matching), path, title)
    network.load_state_dict(matching, strict=False)
    return len(matching)


def _mismatch(
    expected: Tensors, tensors: Tensors, matched: int, path: Path, title: str
) -> WeightsMismatchError:
    facts: dict[str, object] = {
        "file": path,
        "matched": f"{matched} of {len(expected)} tensors; at least 99 % are needed",
    }
    lacking = [name for name in expected if name not in tensors]
    reshaped = [
        f"{name} {_shape(tensors[name])} instead of {_shape(value)}"
        for name, value in expected.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    if lacking:
        facts["not in it"] = _first(lacking)
    if reshaped:
        facts["other shape"] = _first(reshaped)
    surplus = [name for name in tensors if name not in expected]
    if surplus:
        facts["in it instead"] = _first(surplus)
        first = surplus[0].partition(".")[0] + "."
        if matched == 0 and all(name.startswith(first) for name in surplus):
            facts["hint"] = f"all of its names begin with {first!r}"
    return WeightsMismatchError(f"this file does not hold the weights of {title}.", **facts)


def _first(names: list[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (f", … ({len(names)})" if len(names) > count else "")


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "scalar"


def weight_tensors(network: nn.Module) -> Tensors:
    """The tensors a network's output depends on: its state dict without batch counters."""
    return {
        name: value
        for name, value in network.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor, in the order of the names.

    It depends on the numbers only, so that the same weights in two file formats are one teacher.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
