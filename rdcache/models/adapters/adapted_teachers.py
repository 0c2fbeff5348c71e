"""`adapted:RUN`: a teacher that `rdcache adapt` has made of another one, frozen again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rdcache.errors import UsageError, WeightsMismatchError
from rdcache.models.adapters.catalogue import build_adapted, find_adapter, merged
from rdcache.models.adapters.deltas import (
    FILE,
    adapted_digest,
    added_tensors,
    load_delta,
)
from rdcache.models.adapters.networks import LOGITS, POOLED
from rdcache.models.teacher import RANDOM, Adaptation, Teacher, WeightsInfo
from rdcache.models.weight_files import Tensors, weight_tensors

FAMILY = "adapted"
BLACK_BOXES = ("torchscript", "onnx")
LoadBase = Callable[[str, str | None], Teacher]


def load_adapted_teacher(run: str, weights: str | None, load_base: LoadBase) -> Teacher:
    """Build `adapted:RUN`.

    Args:
        run: folder of a run of `rdcache adapt`, or the delta's file.
        weights: where the weights of the teacher that was adapted are, if not where they are looked
            for; of a black box, its file.
        load_base: loads a teacher by name and weights.

    Raises:
        WeightsNotFoundError: there is no such run, or the teacher's weights are not there.
        WeightsMismatchError: the teacher's weights are not the ones that were adapted.
    """
    adaptation, tensors = load_delta(Path(run).expanduser())
    base = _load_base(adaptation, weights, load_base)
    if base.weights.sha256 != adaptation.teacher_sha256:
        raise WeightsMismatchError(
            f"the weights of {base.name} are not the ones that were adapted.",
            run=run,
            adapted=f"sha256 {adaptation.teacher_sha256[:12]}…, from {adaptation.teacher_source}",
            found=f"sha256 {base.weights.sha256[:12]}…, from {base.weights.source}",
            next="--weights FILE with the teacher's weights of that time",
        )
    return adapted_teacher(base, adaptation, tensors)


def adapted_teacher(base: Teacher, adaptation: Adaptation, tensors: Tensors) -> Teacher:
    """Make a teacher of another one and what an adaptation of it has learned. The network becomes
    part of the new teacher.

    Raises:
        WeightsMismatchError: the delta does not fit.
        UsageError: this way to adapt does not apply to this teacher.
    """
    card = find_adapter(adaptation.method)
    options = card.settled(adaptation.options)
    # What a delta says of itself is compared with what it holds before any memory is taken for it.
    with torch.device("meta"):
        outline = build_adapted(card, base, options, len(adaptation.classes))
    expected = added_tensors(outline)
    own = {f"base.{name}": it for name, it in weight_tensors(base.network).items()}
    known = {**own, **expected} if card.whole else expected
    for name, tensor in tensors.items():
        if name not in known or known[name].shape != tensor.shape:
            raise _misfit(adaptation, name)
    if missing := [name for name in expected if name not in tensors]:
        raise _misfit(adaptation, missing[0])
    with torch.random.fork_rng(devices=[]):
        network = build_adapted(card, base, options, len(adaptation.classes))
    network.load_state_dict(tensors, strict=False)
    network = merged(network)
    shapes = {name: tap.shape for name, tap in base.taps.items() if name != LOGITS}
    if POOLED in shapes and network.adapter is not None:
        shapes[POOLED] = (base.taps[POOLED].shape[0] + network.adapter.read_width,)
    shapes[LOGITS] = (len(adaptation.classes),)
    digest = adapted_digest(adaptation, tensors)
    return Teacher(
        name=portable_name(adaptation, digest),
        architecture=f"{FAMILY}/{card.name}/{base.architecture}",
        network=network,
        shapes=shapes,
        preprocessing=base.preprocessing,
        weights=WeightsInfo(
            source=FAMILY,
            sha256=digest,
            licence=base.weights.licence,
            file=FILE,
            matched=f"{len(tensors)} of {len(tensors)}",
        ),
        adaptation=adaptation,
    )


def portable_name(adaptation: Adaptation, digest: str) -> str:
    """The name of an adapted teacher, without folders of this machine.

    >>> made = Adaptation("lora", {}, "timm:vit_tiny", "9a8b", "hub", "busi", "7c6d", ())
    >>> portable_name(made, "0f1e2d3c4b")
    'adapted:lora-timm-vit_tiny-busi-0f1e2d3c'
    """
    parts = (adaptation.method, adaptation.teacher, adaptation.dataset, digest[:8])
    return f"{FAMILY}:" + "-".join(part.replace(":", "-") for part in parts)


def name_of_run(name: str) -> str:
    """`adapted:RUN` as stores of that teacher name it; any other name as it is.

    Raises:
        WeightsMismatchError: the run's delta is damaged.
    """
    family, _, place = name.partition(":")
    file = Path(place).expanduser()
    file = file / FILE if file.is_dir() else file
    if family != FAMILY or not file.is_file():
        return name
    adaptation, tensors = load_delta(file)
    return portable_name(adaptation, adapted_digest(adaptation, tensors))


def _load_base(adaptation: Adaptation, weights: str | None, load_base: LoadBase) -> Teacher:
    """The teacher that was adapted. What a delta says decides no program that is run: the file of
    a black box is named by who loads it.
    """
    family = adaptation.teacher.partition(":")[0]
    if family in BLACK_BOXES:
        if weights is None:
            raise UsageError(
                f"the adapted teacher is {adaptation.teacher}, whose file a run does not know.",
                next="--weights FILE",
            )
        return load_base(f"{family}:{weights}", None)
    if family == FAMILY:
        raise UsageError("an adapted teacher cannot be adapted again.", teacher=adaptation.teacher)
    if weights is None and adaptation.teacher_source == RANDOM:
        weights = RANDOM
    return load_base(adaptation.teacher, weights)


def _misfit(adaptation: Adaptation, tensor: str) -> WeightsMismatchError:
    return WeightsMismatchError(
        f"this adaptation does not fit {adaptation.teacher}.",
        method=adaptation.method,
        tensor=tensor,
    )
