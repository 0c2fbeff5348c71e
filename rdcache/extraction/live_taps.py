"""The taps that a store would hold of images that it does not hold: its teacher, run now.

Whatever the store's options did to the teacher's tensors (bfloat16 arithmetic, pooling, projection,
rounding) is done here too, so that what was trained on the store can go on with the result.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from rdcache.data import portable_name
from rdcache.errors import StaleStoreError, StoreFormatError, TeacherOutputError, UsageError
from rdcache.extraction.checking import FILES
from rdcache.extraction.precision import arithmetic
from rdcache.extraction.reduction import as_laid_out, pooled
from rdcache.models import Teacher, for_volumes, load_teacher
from rdcache.models.adapters import name_of_run
from rdcache.store import Store, folder_name
from rdcache.store.quantisation import dequantise


class LiveTaps:
    """A store's teacher, for other images.

    Args:
        prefix: what the names of its taps begin with where several stores are read in step.

    Raises:
        StoreFormatError: the store does not say how it was extracted.
        StaleStoreError: the teacher is not the one that the store was extracted with.
    """

    def __init__(self, store: Store, teacher: Teacher, prefix: str = "") -> None:
        parts = store.fingerprint.parts
        if not {"teacher", "weights", "preprocessing", "precision"} <= parts.keys():
            raise StoreFormatError(
                "this store does not say how it was extracted.", store=store.location
            )
        teacher = _for_boxes_of(parts["preprocessing"], teacher)
        now = {
            "teacher": teacher.architecture,
            "weights": teacher.weights.sha256,
            "preprocessing": teacher.preprocessing.to_dict(),
        }
        if differing := [name for name, value in now.items() if parts[name] != value]:
            raise StaleStoreError(
                "this is not the teacher that the store was extracted with.",
                teacher=teacher.name,
                store=store.location,
                differs_in=", ".join(differing),
            )
        self.store, self.teacher = store, teacher
        self._own = {f"{prefix}{name}": name for name in store.taps}
        self._precision: str = parts["precision"]
        self._pools = {
            name: tuple(int(side) for side in str(text).split("x"))
            for name, text in dict(parts.get("pool", {})).items()
        }

    @torch.no_grad()
    def of(self, images: torch.Tensor, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Compute taps of a batch.

        Args:
            images: float32 (B, S, S, 3), RGB in 0–255, where S is the teacher's input size; of
                volumes float32 (B, C, *patch), as `VolumePreprocessing.scaled` gives them.
            names: taps; those that are of other stores are passed over.

        Returns:
            Tap name → (B, *tap) on the CPU, as numbers that a method takes.

        Raises:
            TeacherOutputError: the teacher gives NaN or Inf.
        """
        own = {self._own[name]: name for name in names if name in self._own}
        device = self.teacher.device
        inputs = self.teacher.preprocessing.normalise(images.to(device))
        with arithmetic(device, self._precision):
            outputs = self.teacher.forward_taps(inputs, list(own))
        whole = {
            name: pooled(value.float(), self._pools.get(name)).cpu()
            for name, value in outputs.items()
        }
        taps = [self.store.taps[name] for name in own]
        kept = as_laid_out(whole, taps, self.store.projections)
        numbers = {
            own[tap.name]: kept[tap.name].to(getattr(torch, tap.dtype))
            if tap.scales is None
            else dequantise(kept[tap.name], kept[tap.scales.name], tap)
            for tap in taps
        }
        if not all(torch.isfinite(value).all() for value in numbers.values()):
            raise TeacherOutputError(f"{self.teacher.name} gives NaN or Inf for these images.")
        return numbers


def load_live_taps(
    store: Store,
    given: Sequence[str] = (),
    weights: str | None = None,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
    names: Collection[str] | None = None,
) -> list[LiveTaps]:
    """Load the teacher of a store; of stores that are read in step, each one's that is wanted.

    Args:
        given: names of teachers with the folders of this machine, as in `torchscript:FILE` or
            `adapted:RUN`: a store does not know these, and none decides what program is run.
        weights: the teacher's weight file, if it was given by name.
        names: the taps that will be asked for (default: all). Teachers of none of them are not
            loaded.

    Raises:
        UsageError: its name goes on with a path, and is not among those given; or there is one
            weight file for several teachers.
        RdcacheError: see `load_teacher` and `LiveTaps`.
    """
    wanted = {
        prefix: member
        for prefix, member in _prefixes(store).items()
        if names is None or any(f"{prefix}{tap}" in names for tap in member.taps)
    }
    if weights is not None and len(wanted) > 1:
        raise UsageError(
            "one weight file is given for several teachers.",
            weights=weights,
            teachers=", ".join(_teacher(member) for member in wanted.values()),
        )
    return [
        LiveTaps(member, load_teacher(_name_here(member, given), weights, data_dir, device), prefix)
        for prefix, member in wanted.items()
    ]


def _for_boxes_of(preprocessing: Mapping[str, Any], teacher: Teacher) -> Teacher:
    """The teacher as it was for the volumes of a store; of a store of images, as it is."""
    if "patch" not in preprocessing:
        return teacher
    slices = preprocessing.get("slices")
    return for_volumes(teacher, preprocessing["channels"], preprocessing["patch"], slices)


def _prefixes(store: Store) -> dict[str, Store]:
    """What the names of the taps of each member begin with; of a store alone with nothing."""
    if len(store.members) == 1:
        return {"": store}
    return {f"{folder_name(_teacher(member))}.": member for member in store.members}


def _teacher(store: Store) -> str:
    return str(store.manifest["teacher"]["name"])


def _name_here(store: Store, given: Sequence[str]) -> str:
    """The name of a store's teacher on this machine."""
    recorded = _teacher(store)
    known_as = (name for name in given if recorded in (portable_name(name), name_of_run(name)))
    name = next(known_as, recorded)
    if name.partition(":")[0] in FILES and name not in given:
        raise UsageError(
            "a store does not know where the file of its teacher lies on this machine.",
            was_made_of=recorded,
            next="say it: --teacher torchscript:FILE, onnx:FILE or adapted:RUN",
        )
    return name
