"""Checkpoints: everything a run needs to go on exactly where it was, in one file, whole or not.

The file is safetensors; what is no tensor travels as JSON in its metadata.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from rdcache.errors import RunNotFoundError, reason_of
from rdcache.files import write_whole

METADATA_KEY = "rdcache_checkpoint"


def save_checkpoint(path: Path, state: Any) -> None:
    """Write dictionaries and lists of tensors, numbers and strings."""
    tensors: dict[str, torch.Tensor] = {}
    structure = json.dumps(_packed(state, tensors, {}))
    write_whole(path, lambda partial: save_file(tensors, partial, {METADATA_KEY: structure}))


def load_checkpoint(path: Path, device: torch.device) -> Any:
    """Read a checkpoint back.

    Raises:
        RunNotFoundError: it is damaged, or no checkpoint at all.
    """
    try:
        with safe_open(path, framework="pt") as file:
            structure = json.loads((file.metadata() or {})[METADATA_KEY])
        return _unpacked(structure, load_file(path, device=str(device)))
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        raise RunNotFoundError(
            "the checkpoint of this run cannot be read.",
            file=path,
            why=reason_of(error),
            next="start the run again with --overwrite",
        ) from error


def go_on(path: Path, device: torch.device, restore: Callable[[Any], None], things: str) -> None:
    """Give a checkpoint's content to who goes on from it.

    Args:
        things: what a checkpoint is of, in words.

    Raises:
        RunNotFoundError: it is damaged, or of another network.
    """
    state = load_checkpoint(path, device)
    try:
        restore(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunNotFoundError(
            f"the checkpoint of this run is not one of this {things}.",
            file=path,
            next="start the run again with --overwrite",
        ) from error


def _packed(value: Any, tensors: dict[str, torch.Tensor], names: dict[Any, str]) -> Any:
    """Replace tensors by their names; one that occurs twice (a shared layer) is kept once."""
    if isinstance(value, torch.Tensor):
        value = value.detach()
        identity = (value.data_ptr(), tuple(value.shape), value.dtype, str(value.device))
        if identity not in names or not value.numel():
            names[identity] = str(len(tensors))
            tensors[names[identity]] = value.contiguous()
        return {"tensor": names[identity], "channels_last": _is_channels_last(value)}
    if isinstance(value, dict):
        return {"items": [[key, _packed(item, tensors, names)] for key, item in value.items()]}
    if isinstance(value, list | tuple):
        return {"list": [_packed(item, tensors, names) for item in value]}
    return value


def _unpacked(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    if "list" in value:
        return [_unpacked(item, tensors) for item in value["list"]]
    if "items" in value:
        return {key: _unpacked(item, tensors) for key, item in value["items"]}
    tensor = tensors[value["tensor"]]
    # The order in memory decides the order of sums, and with it the last bits of a result.
    return tensor.to(memory_format=torch.channels_last) if value["channels_last"] else tensor


def _is_channels_last(value: torch.Tensor) -> bool:
    return (
        value.ndim == 4
        and not value.is_contiguous()
        and value.is_contiguous(memory_format=torch.channels_last)
    )
