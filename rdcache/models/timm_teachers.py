"""Any timm network by name: its preprocessing, its weights from the hub or a file, as a teacher."""

from __future__ import annotations

import difflib
import socket
import urllib.request
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import huggingface_hub
import timm
import torch
from timm.data import resolve_model_data_config
from timm.models import get_pretrained_cfg

from rdcache.errors import UnknownNameError, UsageError, WeightsNotFoundError, reason_of
from rdcache.models.preprocessing import Preprocessing
from rdcache.models.taps import measure_shapes
from rdcache.models.teacher import RANDOM, Teacher, WeightsInfo
from rdcache.models.timm_taps import TimmTaps
from rdcache.models.weight_files import (
    load_matching,
    read_tensors,
    tensors_digest,
    weight_tensors,
    without_prefix,
)

UNKNOWN_LICENCE = "see the model's card"


def load_timm_teacher(name: str, weights: str | None) -> Teacher:
    """Build `timm:NAME` with its pretrained weights, a file's, or random ones.

    Raises:
        UnknownNameError: timm has no such network.
        WeightsNotFoundError: no such file, or the hub cannot be reached or lacks the weights.
        WeightsMismatchError: less than 99 % of the backbone's tensors are in the file.
    """
    matched = 0
    if weights is None:
        model = pretrained_timm(name)
        source, file = "hub", _hub_name(model)
        matched = len(weight_tensors(model))
    elif weights == RANDOM:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = untrained_timm(name)
        source, file = RANDOM, ""
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = untrained_timm(name)
        source, file = "file", Path(weights).name
        matched = _load_file(model, Path(weights), name)
    network = TimmTaps(model.eval())
    preprocessing = timm_preprocessing(model)
    config = model.pretrained_cfg
    return Teacher(
        name=f"timm:{name}",
        architecture=f"timm/{config.get('architecture') or name}",
        network=network,
        shapes=measure_shapes(network, preprocessing.size),
        preprocessing=preprocessing,
        weights=WeightsInfo(
            source=source,
            sha256=tensors_digest(weight_tensors(network)),
            licence=str(config.get("license") or UNKNOWN_LICENCE),
            file=file,
            matched=f"{matched} of {len(weight_tensors(network))}",
        ),
    )


def untrained_timm(name: str, **options: Any) -> Any:
    """Create a timm network with random weights.

    Raises:
        UnknownNameError: timm has no such network.
    """
    _require_known(name)
    return timm.create_model(name, pretrained=False, **options)


def pretrained_timm(name: str, **options: Any) -> Any:
    """Create a timm network with the weights of its tag from the hub.

    Raises:
        UnknownNameError: timm has no such network.
        WeightsNotFoundError: the hub cannot be reached, or has no such weights.
    """
    _require_known(name)
    cached = _cached_weights(name)
    if cached is not None:
        options["pretrained_cfg_overlay"] = {"file": str(cached)}
    elif not _hub_is_known_here():
        raise _unavailable(name, "no network: the name of the hub cannot be resolved")
    try:
        return timm.create_model(name, pretrained=True, **options)
    # Whatever way to the hub fails (sockets, HTTP, proxies, gates, missing tags) raises the
    # error class of another library; to the user it is one and the same mistake.
    except Exception as error:
        raise _unavailable(name, reason_of(error)) from error


def _unavailable(name: str, reason: str) -> WeightsNotFoundError:
    return WeightsNotFoundError(
        f"the pretrained weights of timm:{name} cannot be had.",
        reason=reason,
        looked_for=f"timm/{name} on the Hugging Face hub, and in its local cache",
        or_pass="--weights FILE, or --weights random for an untrained network",
    )


def _cached_weights(name: str) -> Path | None:
    """The file of an earlier download: it loads without a network, and without asking one."""
    config = get_pretrained_cfg(name)
    repository = getattr(config, "hf_hub_id", None)
    if not repository:
        return None
    file = huggingface_hub.try_to_load_from_cache(repository, "model.safetensors")
    return Path(file) if isinstance(file, str) else None


def _hub_is_known_here() -> bool:
    """Whether the hub's name resolves, or a proxy may do so; otherwise five retries are vain."""
    if urllib.request.getproxies():
        return True
    host = urlsplit(huggingface_hub.constants.ENDPOINT).hostname
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def timm_preprocessing(model: Any) -> Preprocessing:
    """The input that a timm network was trained on.

    Raises:
        UsageError: its input is not a square RGB image.
    """
    config = resolve_model_data_config(model)
    channels, height, width = config["input_size"]
    if channels != 3 or height != width:
        raise UsageError(
            "this network does not take square RGB images.", input_size=config["input_size"]
        )
    interpolation: Literal["bilinear", "bicubic"] = (
        "bilinear" if config["interpolation"] == "bilinear" else "bicubic"
    )
    mean, std = (tuple(float(x) for x in config[key]) for key in ("mean", "std"))
    return Preprocessing(height, mean, std, interpolation)  # type: ignore[arg-type]


def _require_known(name: str) -> None:
    base = name.partition(".")[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), n=3, cutoff=0.5)
        raise UnknownNameError(
            f"timm has no network named {base!r}.",
            **({"did_you_mean": ", ".join(near)} if near else {}),
            see="python -c 'import timm; print(timm.list_models())'",
        )
    try:
        get_pretrained_cfg(name)
    except RuntimeError as error:
        raise UnknownNameError(
            f"timm has no weights under the tag of {name!r}.",
            known=", ".join(timm.list_pretrained(f"{base}.*")),
        ) from error


def _load_file(model: Any, path: Path, name: str) -> int:
    """Load a state dict in timm's names; a head that does not fit the file is taken off."""
    tensors = without_prefix(read_tensors(path), "module.", "model.")
    classifier = model.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    own = model.state_dict()
    for head in heads:
        for key in (f"{head}.weight", f"{head}.bias"):
            if key in own and (key not in tensors or tensors[key].shape != own[key].shape):
                model.reset_classifier(0)
                return load_matching(model, tensors, path, f"timm:{name}")
    return load_matching(model, tensors, path, f"timm:{name}")


def _hub_name(model: Any) -> str:
    config = model.pretrained_cfg
    return str(config.get("hf_hub_id") or config.get("url") or "")
