"""The catalogue of teachers: what there is, and a name in, a ready teacher out.

A published model is one entry of `ENTRIES`, written in its own file. Open families (`timm:…`,
`monai:…`, `torchscript:…`, `onnx:…`, `student:…`, `adapted:…`) have one function each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from rdcache.data import default_data_dir
from rdcache.errors import UnknownNameError, WeightsMismatchError, WeightsNotFoundError
from rdcache.models import (
    ct_fm,
    efficientnet_lite,
    lvm_med,
    merlin,
    pmc_clip,
    sam,
    sam_med3d,
    suprem,
    torchvision_teachers,
    vit_teachers,
)
from rdcache.models.adapters.adapted_teachers import FAMILY as ADAPTED
from rdcache.models.adapters.adapted_teachers import load_adapted_teacher
from rdcache.models.cards import TeacherCard, TeacherEntry
from rdcache.models.devices import choose_device
from rdcache.models.explained_teachers import EXPLAINED, explain
from rdcache.models.monai_teachers import FAMILY as MONAI
from rdcache.models.monai_teachers import load_monai_teacher
from rdcache.models.onnx_models import load_onnx_teacher
from rdcache.models.student_teachers import FAMILY as STUDENT
from rdcache.models.student_teachers import load_student_teacher
from rdcache.models.taps import default_tap
from rdcache.models.teacher import RANDOM, Teacher, WeightsInfo
from rdcache.models.timm_teachers import load_timm_teacher
from rdcache.models.torchscript import load_torchscript_teacher
from rdcache.models.weight_files import (
    is_there,
    load_matching,
    read_tensors,
    tensors_digest,
    weight_tensors,
)

ENTRIES: dict[str, TeacherEntry] = {
    entry.name: entry
    for entry in (
        *pmc_clip.ENTRIES,
        *torchvision_teachers.ENTRIES,
        *lvm_med.ENTRIES,
        *efficientnet_lite.ENTRIES,
        *sam.ENTRIES,
        *vit_teachers.ENTRIES,
        *ct_fm.ENTRIES,
        *suprem.ENTRIES,
        *merlin.ENTRIES,
        *sam_med3d.ENTRIES,
    )
}
FAMILIES: dict[str, Callable[[str, str | None], Teacher]] = {
    "timm": load_timm_teacher,
    MONAI: load_monai_teacher,
    "torchscript": load_torchscript_teacher,
    "onnx": load_onnx_teacher,
    STUDENT: load_student_teacher,
}


def load_teacher(
    name: str,
    weights: str | Path | None = None,
    data_dir: Path | None = None,
    device: torch.device | str = "cpu",
) -> Teacher:
    """Build a teacher and load its weights.

    Args:
        name: a name of `list_teachers`, or `timm:NAME`, `monai:NAME`, `torchscript:FILE`,
            `onnx:FILE`, `student:FILE`, `student:RUN` (or a folder of one), `adapted:RUN`.
        weights: a weight file (of `adapted:`, the one of the teacher that was adapted); None for
            the published one, looked for at `<data_dir>/weights/<teacher>/<file>`, in an installed
            package, or (timm) on the hub; `"random"` for an untrained network, the same one at
            every call.
        data_dir: see `rdcache.data.default_data_dir`.
        device: where the network runs; `"auto"` takes a GPU if there is one.

    Raises:
        UsageError: no such device, or a teacher that rdcache cannot build.
        UnknownNameError: no such teacher.
        WeightsNotFoundError: no weights where they are looked for.
        WeightsMismatchError: the file belongs to another network, or is damaged.
        UnsafeFileError: the file would have to be unpickled.
    """
    place = choose_device(device)  # before weights are read in vain
    family, _, member = name.partition(":")
    if member and family in FAMILIES:
        teacher = FAMILIES[family](member, None if weights is None else str(weights))
    elif member and family == ADAPTED:
        teacher = load_adapted_teacher(
            member,
            None if weights is None else str(weights),
            lambda base, its: load_teacher(base, its, data_dir),
        )
    elif name in ENTRIES:
        teacher = _load_entry(ENTRIES[name], weights, default_data_dir(data_dir))
    elif name in EXPLAINED:
        raise explain(name)
    else:
        families = [f"{it}:NAME" for it in (*FAMILIES, ADAPTED)]
        raise UnknownNameError.of("teacher", name, [*ENTRIES, *families])
    return teacher.to(place)


def list_teachers(data_dir: Path | None = None) -> list[TeacherCard]:
    """Describe every published teacher, without building any of them."""
    folder = default_data_dir(data_dir)
    return [_card(entry, folder) for entry in ENTRIES.values()]


def _card(entry: TeacherEntry, data_dir: Path) -> TeacherCard:
    return TeacherCard(
        name=entry.name,
        title=entry.title,
        taps=entry.shapes,
        default_tap=default_tap(entry.shapes),
        input_shape=entry.preprocessing.input_shape,
        licence=entry.licence,
        weights_present=is_there(_expected_path(entry, data_dir)) or entry.package() is not None,
        source=entry.source,
        expected_path=_expected_path(entry, data_dir),
        corpora=entry.corpora,
    )


def _expected_path(entry: TeacherEntry, data_dir: Path) -> Path:
    return data_dir / "weights" / entry.name / entry.file


def _load_entry(entry: TeacherEntry, weights: str | Path | None, data_dir: Path) -> Teacher:
    source, file, tensors = RANDOM, Path(), None
    if str(weights) != RANDOM:
        source, file = _weight_file(entry, weights, data_dir)
        tensors = read_tensors(file)
        if other := entry.foreign(tensors):
            raise WeightsMismatchError(
                f"this file does not hold the weights of {entry.name}.", file=file, it_is=other
            )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = entry.build()
    matched = 0
    if tensors is not None:
        matched = load_matching(network.backbone, entry.rename(tensors), file, entry.name)
    loaded = weight_tensors(network)
    return Teacher(
        name=entry.name,
        architecture=entry.architecture,
        network=network,
        shapes=entry.shapes,
        preprocessing=entry.preprocessing,
        weights=WeightsInfo(
            source=source,
            sha256=tensors_digest(loaded),
            licence=entry.licence,
            file=file.name,
            matched=f"{matched} of {len(loaded)}",
        ),
    )


def _weight_file(
    entry: TeacherEntry, weights: str | Path | None, data_dir: Path
) -> tuple[str, Path]:
    """Where the weights come from (see `WeightsInfo.source`) and their file."""
    if weights is not None:
        return "file", Path(weights)
    expected = _expected_path(entry, data_dir)
    if is_there(expected):
        return "file", expected
    packaged = entry.package()
    if packaged is not None:
        return "package", packaged
    raise WeightsNotFoundError(
        f"the weights of {entry.name} are not there.",
        looked_for=expected,
        get_it_from=f"{entry.source} (licence: {entry.licence})",
        or_pass="--weights FILE, or --weights random for an untrained network",
    )
