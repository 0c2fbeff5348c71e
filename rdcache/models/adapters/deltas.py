"""What an adaptation has learned, as one small file, and what it belongs to.

The file is safetensors. Its metadata says which teacher, by name and by the digest of its weights,
was adapted how, and to which classes. Of full fine-tuning it holds the tensors that have changed,
which are nearly all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from rdcache.errors import WeightsMismatchError, WeightsNotFoundError, reason_of
from rdcache.files import write_bytes
from rdcache.models.adapters.networks import AdaptedNetwork
from rdcache.models.teacher import Adaptation
from rdcache.models.weight_files import Tensors, is_there, tensors_digest, weight_tensors

FILE = "delta.safetensors"
METADATA_KEY = "rdcache_adapted"
SCHEMA = 1


def learned_tensors(network: AdaptedNetwork, original: Mapping[str, torch.Tensor]) -> Tensors:
    """What makes the network what it is: all of adapter and classifier, and what has changed of
    the teacher's own tensors.

    Args:
        original: the teacher's tensors as they were, by the names of `network.base`; empty where
            they are not trained.
    """
    tensors = added_tensors(network)
    own = weight_tensors(network.base) if original else {}
    changed = {name for name, it in own.items() if not torch.equal(it.cpu(), original[name].cpu())}
    tensors |= {f"base.{name}": own[name] for name in changed}
    return {name: it.detach().cpu().contiguous().clone() for name, it in sorted(tensors.items())}


def added_tensors(network: AdaptedNetwork) -> Tensors:
    """The tensors of adapter and classifier, by the names that they have in a delta."""
    tensors: Tensors = {}
    for prefix, module in (("adapter", network.adapter), ("head", network.head)):
        own = {} if module is None else weight_tensors(module)
        tensors |= {f"{prefix}.{name}": value for name, value in own.items()}
    return tensors


def adapted_digest(adaptation: Adaptation, tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over everything that decides the adapted network's numbers.

    It is taken of the teacher's digest and the delta, not of the tensors that they come to: these
    may differ in their last bits from machine to machine.
    """
    deciding = {
        "method": adaptation.method,
        "options": dict(adaptation.options),
        "teacher": adaptation.teacher_sha256,
        "learned": tensors_digest(tensors),
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def save_delta(path: Path, adaptation: Adaptation, tensors: Tensors) -> None:
    """Write a delta, whole or not at all.

    Raises:
        FileWriteError: it cannot be written.
    """
    content = {"schema": SCHEMA, **asdict(adaptation)}
    data = save(tensors, {METADATA_KEY: json.dumps(content)})
    write_bytes(path, data)


def load_delta(path: Path) -> tuple[Adaptation, Tensors]:
    """Read a delta: the file itself, or the folder of the run that wrote it.

    Raises:
        WeightsNotFoundError: there is no such file.
        WeightsMismatchError: it is damaged, or not one of `save_delta`.
    """
    file = path / FILE if path.is_dir() else path
    if not is_there(file):
        raise WeightsNotFoundError(
            "there is no finished adaptation here.",
            looked_for=file,
            next="rdcache adapt --teacher … --dataset … writes one",
        )
    return adaptation_of(file), _read(file)


def adaptation_of(file: Path) -> Adaptation:
    """What a delta belongs to, by its metadata.

    Raises:
        WeightsMismatchError: it is damaged, or not one of `save_delta`.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            content = json.loads((opened.metadata() or {})[METADATA_KEY])
        if content.pop("schema") != SCHEMA:
            raise ValueError("it was written by another version of rdcache")
        content["classes"] = tuple(content["classes"])
        adaptation = Adaptation(**content)
        texts = [v for n, v in asdict(adaptation).items() if n not in ("options", "classes")]
        if not all(isinstance(text, str) for text in [*texts, *adaptation.classes]):
            raise TypeError("its metadata are of other kinds")
        if not isinstance(adaptation.options, dict) or len(adaptation.classes) < 2:
            raise ValueError("it does not say what it was adapted to")
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise _no_delta(file, error) from error
    return adaptation


def _read(file: Path) -> Tensors:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise _no_delta(file, error) from error


def _no_delta(file: Path, error: Exception) -> WeightsMismatchError:
    return WeightsMismatchError(
        "this file is not an adaptation that rdcache saved.", file=file, reason=reason_of(error)
    )
