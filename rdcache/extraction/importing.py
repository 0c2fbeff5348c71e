"""`rdcache import`: a store from features that were computed elsewhere.

So a teacher that may not be run here can be distilled all the same. The rows of a file are matched
with a dataset's samples; what comes out is an ordinary store of one view, the clean one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

import rdcache
from rdcache.data import (
    DatasetSpec,
    ImageDataset,
    ViewSpec,
    load_dataset,
    salt_of_environment,
    view_columns,
    view_parameters,
)
from rdcache.errors import DatasetError, FeatureFileError, StoreFormatError, UsageError
from rdcache.extraction.feature_files import BagFolder, FeatureFile, FeatureSource
from rdcache.extraction.matching import NO_ROW, match_rows, require_all, some
from rdcache.extraction.shared_options import (
    DataDirOption,
    DropLeaksOption,
    KeepPathsOption,
    RootOption,
    SaltOption,
    SplitSeedOption,
    ValFractionOption,
)
from rdcache.models.taps import default_tap
from rdcache.progress import Progress, ignore
from rdcache.store import (
    NOT_FINITE,
    STORED,
    Fingerprint,
    SampleTable,
    ShardRef,
    Store,
    StoreLayout,
    StoreWriter,
    TapSpec,
    store_location,
)
from rdcache.store.creating import StoreContent
from rdcache.store.filling import fill_store
from rdcache.store.hdf5 import open_hdf5
from rdcache.store.hdf5_import import exported_manifest, import_hdf5
from rdcache.store.manifest import fingerprint_of

PROBED = 32  # rows that are looked at before anything is written
OF_THIS_MACHINE = {"root", "data_dir"}


class ImportConfig(BaseModel):
    """Options of an import; a file that `rdcache export` wrote needs none but the root."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dataset: str | None = Field(
        default=None, description="The images that the features are of; see `list datasets`."
    )
    teacher_name: str | None = Field(
        default=None, min_length=1, description="What to call the model that made the features."
    )
    tap: tuple[str, ...] = Field(
        default=(),
        description="HDF5 datasets to take, as NAME=DATASET: (n, D) is a vector, (n, L, D) tokens, "
        "(n, C, H, W) a map.",
    )
    keys: str | None = Field(
        default=None,
        description="HDF5 dataset that says which image each row is of: uids, or paths relative to "
        "the dataset's folder.",
    )
    tokens: int = Field(
        default=0, ge=0, description="Of a folder of slides: patches to keep of each."
    )
    allow_missing: bool = Field(
        default=False, description="Leave out images without a row, and rows without an image."
    )
    fit: Literal["squash", "center"] = Field(
        default="squash",
        description="What the model saw: the whole image squashed to a square, or its central "
        "square.",
    )
    seed: SplitSeedOption = 0
    val_fraction: ValFractionOption = 0.15
    drop_leaks: DropLeaksOption = False
    keep_paths: KeepPathsOption = False
    uid_salt: SaltOption = Field(default_factory=salt_of_environment)
    root: RootOption = None
    data_dir: DataDirOption = None


@dataclass(frozen=True)
class Imported:
    """What an import did.

    Attributes:
        missing: uids of the images for which there is no row.
        not_finite: uids of the images whose row has NaN or Inf.
        unmatched: keys of the rows that are of no image of the dataset.
    """

    store: Store
    status: Literal["imported", "unchanged"]
    missing: tuple[str, ...] = ()
    not_finite: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()


def import_store(path: Path, config: ImportConfig, on_progress: Progress = ignore) -> Imported:
    """Make a store of an exported file, of a file of features, or of a folder of slides.

    Raises:
        FeatureFileError, UnknownNameError, UnsafeFileError: see `rdcache.store.hdf5`.
        UsageError: options are missing, or are not for this kind of file.
        DatasetError: the rows and the images are not the same.
        StoreWriteError: the root cannot be written.
    """
    manifest = None if path.is_dir() else exported_manifest(path)
    if manifest is not None:
        return _import_export(path, manifest, config, on_progress)
    if config.dataset is None or config.teacher_name is None:
        raise UsageError(
            "say which images these features are of and what made them.",
            next="--dataset NAME --teacher-name NAME",
        )
    with ExitStack() as stack:
        source: FeatureSource
        if path.is_dir():
            _refuse(config, ("tap", "keys"), "of a folder of slides all features are taken")
            source = BagFolder(path, config.tokens)
        else:
            _refuse(config, ("tokens",), "patches are chosen in a folder of slides")
            file = stack.enter_context(open_hdf5(path))
            if config.keys is None or not config.tap:
                raise UsageError(
                    "say which HDF5 datasets to take, and which names the image of each row.",
                    next="--tap NAME=DATASET --keys DATASET",
                )
            source = FeatureFile(file, config.keys, _named_taps(config.tap))
        return _import_features(path, source, config, on_progress)


def _refuse(config: ImportConfig, options: Sequence[str], why: str) -> None:
    given = [f"--{name.replace('_', '-')}" for name in options if name in config.model_fields_set]
    if given:
        raise UsageError(f"{why}.", leave_out=", ".join(given))


def _named_taps(pairs: Sequence[str]) -> dict[str, str]:
    taps: dict[str, str] = {}
    for pair in pairs:
        name, _, dataset = pair.partition("=")
        if not name or name in taps:
            raise UsageError("a tap is given as NAME=DATASET, each name once.", given=pair)
        taps[name] = dataset or name
    return taps


def _import_export(
    path: Path, manifest: Mapping[str, Any], config: ImportConfig, on_progress: Progress
) -> Imported:
    _refuse(
        config,
        sorted(config.model_fields_set - OF_THIS_MACHINE),
        "this file was exported by rdcache and says itself what it holds",
    )
    try:
        dataset, teacher = manifest["dataset"]["name"], manifest["teacher"]["name"]
    except (KeyError, TypeError):
        dataset = teacher = None
    if not isinstance(dataset, str) or not isinstance(teacher, str):
        raise StoreFormatError("the manifest names no dataset and teacher.", file=path)
    digest = fingerprint_of(manifest, path).digest
    location = store_location(config.root, dataset, teacher, digest)
    store, filled = import_hdf5(path, location, on_progress)
    return Imported(store, "imported" if filled else "unchanged")


def _import_features(
    path: Path, source: FeatureSource, config: ImportConfig, on_progress: Progress
) -> Imported:
    """Match rows with images, then write the store."""
    spec = DatasetSpec(
        name=config.dataset or "",
        seed=config.seed,
        val_fraction=config.val_fraction,
        drop_leaks=config.drop_leaks,
    )
    dataset = load_dataset(spec, config.data_dir, salt=config.uid_salt, on_progress=on_progress)
    rows, unmatched = match_rows(source.keys, dataset)
    missing = [dataset.samples[i] for i in np.flatnonzero(rows == NO_ROW)]
    if not config.allow_missing:
        require_all(path, dataset, [str(sample.path) for sample in missing], unmatched)
    _require_numbers(path, source, rows)
    content = _content(source, dataset, config)
    teacher = config.teacher_name or ""
    location = store_location(config.root, dataset.name, teacher, content.fingerprint.digest)

    def fill(writer: StoreWriter, shard: ShardRef) -> None:
        writer.write(shard, *_shard(source, rows[shard.start : shard.stop]))

    store, filled = fill_store(location, content, fill, on_progress)
    stored = store.available(range(store.samples), 0)
    return Imported(
        store,
        "imported" if filled else "unchanged",
        missing=tuple(sample.uid for sample in missing),
        not_finite=tuple(map(str, store.uids[~stored & (rows != NO_ROW)])),
        unmatched=tuple(unmatched),
    )


def _require_numbers(path: Path, source: FeatureSource, rows: np.ndarray) -> None:
    """Look at some rows before anything is written."""
    probed = np.sort(rows[rows != NO_ROW])[:PROBED]
    if not len(probed):
        raise DatasetError(
            "none of these keys fits an image of the dataset.",
            file=path,
            first_keys=some(source.keys),
            next="another --keys or --dataset",
        )
    _, outcome = _shard(source, probed)
    if not (outcome == STORED).any():
        raise FeatureFileError(
            "these features are NaN or Inf in every row that was looked at.",
            file=path,
            rows=len(probed),
        )


def _shard(source: FeatureSource, rows: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Tensors and outcomes of samples; those without a row, or with NaN or Inf, count as not
    finite and are left absent.
    """
    places = np.flatnonzero(rows != NO_ROW)
    places = places[np.argsort(rows[places])]  # in the order in which they lie in the file
    found = source.read(rows[places])
    outcome = np.full(len(rows), NOT_FINITE, np.uint8)
    outcome[places] = STORED
    tensors = {}
    for tap in source.taps:
        tensors[tap.name] = np.zeros((len(rows), *tap.shape), tap.stored_dtype)
        tensors[tap.name][places] = found[tap.name]
        outcome[places[~_finite(found[tap.name], tap)]] = NOT_FINITE
    return tensors, outcome


def _finite(values: np.ndarray, tap: TapSpec) -> np.ndarray:
    """Of each row, whether it has neither NaN nor Inf; those have all exponent bits set."""
    as_bits = tap.dtype == "bfloat16"
    finite = (values & 0x7F80) != 0x7F80 if as_bits else np.isfinite(values)
    return finite.reshape(len(values), -1).all(axis=1)


def _content(source: FeatureSource, dataset: ImageDataset, config: ImportConfig) -> StoreContent:
    """What the store will say of itself."""
    views = ViewSpec.parse("clean", symmetry=dataset.symmetry, fit=config.fit)
    origin = {"sha256": source.sha256, **source.origin}
    fingerprint = Fingerprint(
        {
            "teacher": config.teacher_name,
            "imported": origin,
            "taps": [[tap.name, tap.kind, list(tap.shape)] for tap in source.taps],
            "dtype": {tap.name: tap.dtype for tap in source.taps},
            "dataset": dataset.digest,
            "views": views.to_dict(),
        }
    )
    facts = {
        "dataset": dataset.facts(keep_paths=config.keep_paths),
        "teacher": {
            "name": config.teacher_name,
            "architecture": "unknown",
            "weights": {"source": "features from elsewhere", "sha256": source.sha256},
            "preprocessing": None,
            "default_tap": default_tap({tap.name: tap.shape for tap in source.taps}),
        },
        "views": views.to_dict(),
        "provenance": {"rdcache": rdcache.__version__, "imported": origin},
    }
    sizes = [sample.size for sample in dataset.samples]
    return StoreContent(
        StoreLayout.plan(source.taps, (len(dataset),), findings=dataset.findings),
        fingerprint,
        SampleTable(
            tuple(map(str, dataset.uids)),
            dataset.labels,
            tuple(map(str, dataset.splits)),
            dataset.group_codes,
        ),
        view_parameters(views, dataset.uids, sizes),
        view_columns(dataset.dimensions),
        facts,
    )
