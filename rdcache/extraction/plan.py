"""What an extraction will do, worked out before anything is written.

A plan names the teacher, the samples, the views and the taps, and with them the fingerprint and
the place of the store; `rdcache extract --dry-run` prints it. Running it is `run.py`'s part.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rdcache.data import DatasetSpec, ImageDataset, ViewSpec, load_dataset, view_parameters
from rdcache.errors import StoreWriteError, UnknownNameError, UsageError
from rdcache.extraction.basis import require_vectors
from rdcache.extraction.config import ExtractConfig
from rdcache.extraction.precision import PRECISIONS, chosen_precision, precision_of_store
from rdcache.extraction.reduction import KeptTap, deciding_parts, kept_taps
from rdcache.extraction.volumes import suited_to, volume_parts
from rdcache.models import Teacher, load_teacher
from rdcache.models.taps import finer_map
from rdcache.progress import Progress, ignore
from rdcache.store import (
    Fingerprint,
    Location,
    RemotePath,
    SampleTable,
    StoreLayout,
    TapSpec,
    store_location,
    write_error,
)
from rdcache.store.quantisation import with_scales

VOLUMES_AT_ONCE = 2  # a box of 96³ voxels has as many numbers as six images of 384²


@dataclass(frozen=True)
class ExtractionPlan:
    """Everything that decides a store, and the objects that fill it.

    Attributes:
        view_parameters: float64 (views, samples, columns), columns
            `rdcache.data.view_columns(dataset.dimensions)`.
        location: the folder the store is, or will be.
        kept: each tap as the teacher gives it and as it is kept.
        config: with the precision that `auto` has come to.
        why_precision: why it came to that; None where a precision was asked for.
    """

    config: ExtractConfig
    dataset: ImageDataset
    teacher: Teacher
    view_spec: ViewSpec
    view_parameters: np.ndarray
    layout: StoreLayout
    fingerprint: Fingerprint
    location: Location
    kept: tuple[KeptTap, ...]
    why_precision: str | None = None

    @property
    def training(self) -> np.ndarray:
        """Numbers of the training samples."""
        return np.flatnonzero(self.dataset.splits == "train")

    @property
    def forwards(self) -> int:
        """Images that go through the teacher: one per sample and extracted view."""
        return sum(self.layout.extents)

    @property
    def batch_size(self) -> int:
        """Samples of a forward pass: as asked for; of volumes, unless asked otherwise, few."""
        if self.dataset.dimensions == 3 and "batch_size" not in self.config.model_fields_set:
            return VOLUMES_AT_ONCE
        return self.config.batch_size

    def free_bytes(self) -> int | None:
        """Free space on the file system that the root lies on, or will lie on; None: no limit.

        Raises:
            StoreWriteError: the root lies where we may not look.
        """
        folder = self.location
        if isinstance(folder, RemotePath):
            return None
        try:
            while not folder.exists():
                folder = folder.parent
            return shutil.disk_usage(folder).free
        except OSError as error:
            raise write_error(folder, error) from error

    def require_space(self, needed: int) -> None:
        """Refuse to start what cannot end.

        Raises:
            StoreWriteError: less space is free than the store still needs.
        """
        free = self.free_bytes()
        if free is not None and needed > free:
            raise StoreWriteError(
                "there is not enough free space for this store.",
                store=self.location,
                needs=f"{needed / 1e9:.2f} GB",
                free=f"{free / 1e9:.2f} GB",
                next="free some space, choose another --root, or fewer --views or --taps",
            )

    def sample_table(self) -> SampleTable:
        """The dataset's columns that a store keeps."""
        return SampleTable(
            uids=tuple(self.dataset.uids),
            labels=self.dataset.labels,
            splits=tuple(self.dataset.splits),
            groups=self.dataset.group_codes,
        )

    def facts(self) -> dict[str, Any]:
        """The manifest's account of where the tensors come from."""
        return {
            "dataset": self.dataset.facts(keep_paths=self.config.keep_paths),
            "teacher": {
                "name": self.teacher.name,
                "architecture": self.teacher.architecture,
                "weights": self.teacher.weights.to_dict(),
                "preprocessing": self.teacher.preprocessing.to_dict(),
                "default_tap": default_tap(self.teacher, tuple(it.kept.name for it in self.kept)),
                **_adapted(self.teacher),
            },
            "views": self.view_spec.to_dict(),
        }


def plan_extraction(config: ExtractConfig, on_progress: Progress = ignore) -> ExtractionPlan:
    """Load the dataset and the teacher and work out the store they make.

    Raises:
        UnknownNameError: no such teacher, dataset or tap.
        UsageError: an adapted teacher was trained on other splits of the dataset, or options of
            volumes do not suit the teacher or the images.
        DatasetNotFoundError, WeightsNotFoundError: files that are not there.
    """
    teacher = load_teacher(
        config.teacher, weights=config.weights, data_dir=config.data_dir, device=config.device
    )
    chosen_taps(teacher, config)  # before a long look at the images
    dataset = load_dataset(
        DatasetSpec(
            name=config.dataset,
            seed=config.seed,
            val_fraction=config.val_fraction,
            drop_leaks=config.drop_leaks,
            spacing=config.spacing,
        ),
        data_dir=config.data_dir,
        strict=config.strict,
        salt=config.uid_salt,
        on_progress=on_progress,
    )
    _require_same_splits(teacher, dataset)
    config, teacher = suited_to(dataset, config, teacher)
    kept = kept_taps(config, chosen_taps(teacher, config))
    taps = tuple(it.kept for it in kept)
    view_spec = ViewSpec.parse(
        config.views,
        symmetry=dataset.symmetry,
        fit=config.fit,
        patch=config.patch,
        stride=config.stride,
    )
    training = int(np.count_nonzero(dataset.splits == "train"))
    require_vectors(kept, training)
    extents = (len(dataset), *([training] * (view_spec.count - 1)))
    # Precision decides the numbers. Device, threads and compiling decide at most how they are
    # rounded at that precision: they are told in the manifest's provenance.
    parts = {
        "teacher": teacher.architecture,
        "weights": teacher.weights.sha256,
        "preprocessing": teacher.preprocessing.to_dict(),
        "taps": [[tap.name, tap.kind, list(tap.shape)] for tap in taps],
        **deciding_parts(kept),
        "dataset": dataset.digest,
        "views": view_spec.to_dict(),
        **volume_parts(dataset),
    }
    fingerprints = {each: Fingerprint({**parts, "precision": each}) for each in PRECISIONS}
    places = {
        each: store_location(config.root, dataset.name, teacher.name, fingerprint.digest)
        for each, fingerprint in fingerprints.items()
    }
    why_precision = None
    if config.precision == "auto":
        precision, why_precision = precision_of_store(places) or chosen_precision(
            teacher, [tap.name for tap in taps], on_progress
        )
        config = config.model_copy(update={"precision": precision})
    else:
        precision = config.precision
    if config.compile:
        teacher.compile()
    sizes = [sample.size for sample in dataset.samples]
    return ExtractionPlan(
        config=config,
        dataset=dataset,
        teacher=teacher,
        view_spec=view_spec,
        view_parameters=view_parameters(view_spec, dataset.uids, sizes),
        layout=StoreLayout.plan(with_scales(taps), extents, findings=dataset.findings),
        fingerprint=fingerprints[precision],
        location=places[precision],
        kept=kept,
        why_precision=why_precision,
    )


def _adapted(teacher: Teacher) -> dict[str, Any]:
    """Of an adapted teacher: the classes of its logits, in their order, and how it was adapted."""
    adaptation = teacher.adaptation
    if adaptation is None:
        return {}
    names = ("method", "options", "teacher", "dataset", "dataset_digest")
    facts = asdict(adaptation)
    return {
        "logits_classes": list(adaptation.classes),
        "adapted": {name: facts[name] for name in names},
    }


def _require_same_splits(teacher: Teacher, dataset: ImageDataset) -> None:
    """Refuse an adapted teacher on other splits of its dataset: it would have been trained on
    images that are now for the test.

    Raises:
        UsageError: it is of this dataset, but of another version or other splits of it.
    """
    adaptation = teacher.adaptation
    if adaptation is None or adaptation.dataset != dataset.name:
        return
    if adaptation.dataset_digest != dataset.digest:
        raise UsageError(
            "this teacher was adapted on another version of this dataset, or on other splits: it "
            "may have been trained on what are test images now.",
            teacher=teacher.name,
            adapted_on=f"{dataset.name}  digest {adaptation.dataset_digest[:8]}…",
            now=f"{dataset.name}  digest {dataset.digest[:8]}…",
            next="the --seed, --val-fraction, --drop-leaks and --uid-salt of the adaptation, or "
            "adapt again",
        )


def chosen_taps(teacher: Teacher, config: ExtractConfig) -> tuple[TapSpec, ...]:
    """The taps asked for, as the teacher gives them; by default what RD and a linear probe need."""
    shapes = {name: tap.shape for name, tap in teacher.taps.items()}
    # That of a volume takes four times the room of the default tap, and no gain was measured yet.
    finer = finer_map(shapes, teacher.default_tap) if teacher.dimensions == 2 else None
    usual = [name for name in (finer, teacher.default_tap, "pooled") if name in teacher.taps]
    # Logits of positions, of a segmentation, are as large as the image.
    if teacher.adaptation is not None and teacher.taps["logits"].kind == "logits":
        usual.append("logits")
    names = tuple(dict.fromkeys(config.taps or usual))
    for name in names:
        if name not in teacher.taps:
            raise UnknownNameError.of(f"tap of {teacher.name}", name, teacher.taps)
    return tuple(teacher.taps[name] for name in names)


def default_tap(teacher: Teacher, kept: tuple[str, ...]) -> str:
    """The tap that methods read unless told otherwise: the teacher's own default if it is kept."""
    return teacher.default_tap if teacher.default_tap in kept else kept[0]


__all__ = ["ExtractionPlan", "plan_extraction"]
