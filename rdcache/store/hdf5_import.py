"""An exported HDF5 file as the store it was: every number, digest and fingerprint is the same.

The file holds the store's receipts, so that whatever happened to it on its way is noticed before
a byte of it is in a store. Features computed elsewhere are `rdcache.extraction`'s part.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import torch

from rdcache.errors import FeatureFileError, StoreFormatError
from rdcache.progress import Progress, ignore
from rdcache.store import arrays
from rdcache.store.compression import compress
from rdcache.store.creating import StoreContent
from rdcache.store.filling import Finished, fill_store
from rdcache.store.hdf5 import (
    MOST_COMPRESSION,
    find_dataset,
    open_hdf5,
    read_attribute,
    read_rows,
    require_held,
    runs,
)
from rdcache.store.locations import Location
from rdcache.store.manifest import (
    ATTRIBUTE,
    BESIDE,
    STRUCTURE,
    digests_of,
    fingerprint_of,
    layout_of,
    require_known,
    require_root,
)
from rdcache.store.projection import Projection
from rdcache.store.reader import Store
from rdcache.store.shard import encode_shard
from rdcache.store.spec import (
    SHARD_BYTES,
    SPLITS,
    STORED,
    UID,
    SampleTable,
    ShardRef,
    StoreLayout,
    TapSpec,
)
from rdcache.store.writer import StoreWriter

if TYPE_CHECKING:
    from typing_extensions import Buffer  # of `collections.abc` from Python 3.12 on

# Beyond what the file itself could fill, a shard holds no more samples and bytes than these.
LARGEST_SHARD_SAMPLES, LARGEST_SHARD_BYTES = 2**16, 16 * SHARD_BYTES


def exported_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest in a file that `export_hdf5` wrote; None in any other HDF5 file.

    Raises:
        FeatureFileError: no HDF5 file, or a manifest that is no JSON.
    """
    with open_hdf5(path) as file:
        return _manifest(file)


def import_hdf5(
    path: Path, location: Location, on_progress: Progress = ignore
) -> tuple[Store, bool]:
    """Write the store that was exported, or what is still missing of it.

    Args:
        location: the folder of the store to be.

    Raises:
        FeatureFileError: no export, cut short, or not the numbers of its receipts.
        StoreFormatError: its manifest makes no sense.
        UnsafeFileError: parts of it lie in other files.
        StoreWriteError, StaleStoreError: see `fill_store`.
    """
    with open_hdf5(path) as file:
        export = _Export(file, path)

        def fill(writer: StoreWriter, shard: ShardRef) -> None:
            writer.write(shard, *export.shard(shard))

        finished = Finished(export.manifest, export.receipt)
        return fill_store(location, export.content, fill, on_progress, finished)


def _manifest(file: h5py.File) -> dict[str, Any] | None:
    text = read_attribute(file, ATTRIBUTE)
    if not isinstance(text, str):
        return None
    try:
        manifest = json.loads(text)
        json.dumps(manifest, allow_nan=False)
    except (ValueError, RecursionError):
        manifest = None
    if not isinstance(manifest, dict):
        raise FeatureFileError("the manifest in this file is no JSON.", file=file.filename)
    require_known(manifest, Path(file.filename))
    return manifest


def _require_sane_shards(layout: StoreLayout, path: Path) -> None:
    """Refuse shards for which memory would be asked that nothing in the file can fill."""
    count = min(layout.shard_samples, layout.samples)
    largest = count * max(tap.nbytes for tap in layout.taps)
    most = max(LARGEST_SHARD_BYTES, path.stat().st_size * MOST_COMPRESSION)
    if largest > most or layout.shard_samples > max(LARGEST_SHARD_SAMPLES, 2 * layout.samples):
        raise StoreFormatError(
            "the shards of this store are absurdly large.",
            file=path,
            shard=f"{layout.shard_samples} samples, {largest} bytes",
        )


class _Export:
    """An exported file, checked against its own manifest as far as that goes without the taps.

    Attributes:
        manifest: of the finished store.
        content: the store to be.
    """

    def __init__(self, file: h5py.File, path: Path) -> None:
        self.file, self.path = file, path
        manifest = _manifest(file)
        if manifest is None or manifest.get("complete") is not True:
            raise FeatureFileError("this file is no export of rdcache.", file=path)
        require_root(manifest, path)
        self.manifest = manifest
        layout = self.layout = layout_of(manifest, path)
        _require_sane_shards(layout, path)
        self.digests = digests_of(manifest, path)
        per_sample = (layout.views, layout.samples)
        self.outcome = self._read("outcome", per_sample, "u1")
        per_shard = (layout.views, layout.shards_per_view, len(layout.taps), arrays.DIGEST_BYTES)
        self.receipt = self._read("receipt", per_shard, "u1")
        self._require_digest("outcome", *map(self._padded_outcome, layout.shards()))
        shards = layout.shards()
        self._require_digest("receipt", *(self.receipt[s.view, s.index].data for s in shards))
        self.taps = {tap.name: self._tap(tap) for tap in layout.taps}
        names = read_attribute(self._array("view"), "columns")
        view_columns = [] if names is None else [str(name) for name in np.atleast_1d(names)]
        documents = sorted(arrays.all_documents(layout, view_columns).items())
        self._require_digest("metadata", *(document for _, document in documents))
        view_shape = (*per_sample, len(view_columns))
        self.content = StoreContent(
            layout,
            fingerprint_of(manifest, path),
            self._samples(),
            self._checked_column("view", view_shape, "<f8"),
            view_columns,
            {name: value for name, value in manifest.items() if name not in (*STRUCTURE, *BESIDE)},
            self._projections(),
        )

    def shard(self, shard: ShardRef) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Tensors and outcomes of one shard, compared with its receipt."""
        outcome = self.outcome[shard.view, shard.start : shard.stop]
        tensors = {}
        for number, tap in enumerate(self.layout.taps):
            dataset = self.taps[tap.name]
            rows = np.zeros((len(outcome), *tap.shape), dataset.dtype)  # takes no memory yet
            for start, stop in runs(outcome == STORED):
                place = np.s_[shard.view, shard.start + start : shard.start + stop]
                rows[start:stop] = read_rows(dataset, place)
            packing = None if tap.codec == "none" else partial(compress, tap)
            pieces = encode_shard(rows, outcome == STORED, self.layout.shard_samples, packing)
            digest = hashlib.sha256()
            for piece in pieces:
                digest.update(piece)
            if digest.digest() != self.receipt[shard.view, shard.index, number].tobytes():
                samples = f"samples {shard.start} to {shard.stop - 1}"
                error = self._damaged(f"taps/{tap.name}, view {shard.view}, {samples}")
                if packing is not None:
                    error.facts["or"] = (
                        f"the {tap.codec} of this machine compresses otherwise than that of the "
                        "exporter: copy the store itself"
                    )
                raise error
            tensors[tap.name] = rows
        return tensors, outcome

    def _samples(self) -> SampleTable:
        count = (self.layout.samples,)
        uids = [raw.decode("ascii", "replace") for raw in self._read("uid", count, "S32").tolist()]
        splits = self._checked_column("split", count, "i1")
        if not all(map(UID.fullmatch, uids)) or not np.isin(splits, range(len(SPLITS))).all():
            raise self._damaged("uid or split")
        self._require_digest("uid", bytes.fromhex("".join(uids)))
        findings = (self.layout.findings,) if self.layout.findings else ()
        labels = self._checked_column("label", (*count, *findings), "<i8")
        groups = self._checked_column("group", count, "<i8")
        return SampleTable(tuple(uids), labels, tuple(SPLITS[it] for it in splits), groups)

    def _tap(self, tap: TapSpec) -> h5py.Dataset:
        shape = (self.layout.views, self.layout.samples, *tap.shape)
        dataset = self._array(f"taps/{tap.name}", shape, tap.stored_dtype.newbyteorder("<").str)
        require_held(dataset, int(np.count_nonzero(self.outcome == STORED)) * tap.nbytes)
        return dataset

    def _projections(self) -> dict[str, Projection]:
        documents = arrays.projection_documents(self.layout)
        columns = {
            name: torch.from_numpy(self._checked_column(name, tuple(document["shape"]), "<f4"))
            for name, document in documents.items()
        }
        return {
            tap.name: Projection(
                columns[f"taps/{tap.name}.mean"], columns[f"taps/{tap.name}.basis"]
            )
            for tap in self.layout.taps
            if tap.projected_from is not None
        }

    def _checked_column(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        values = self._read(name, shape, dtype)
        self._require_digest(name, values.data)
        return values

    def _read(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        dataset = self._array(name, shape, dtype)
        require_held(dataset)
        return read_rows(dataset)

    def _array(
        self, name: str, shape: tuple[int, ...] | None = None, dtype: str = ""
    ) -> h5py.Dataset:
        dataset = find_dataset(self.file, name)
        if shape is not None and (dataset.shape != shape or dataset.dtype != np.dtype(dtype)):
            raise FeatureFileError(
                "a dataset of this file is not what its manifest says.",
                file=self.path,
                dataset=name,
                manifest=f"{np.dtype(dtype)} {shape}",
                holds=f"{dataset.dtype} {dataset.shape}",
            )
        return dataset

    def _padded_outcome(self, shard: ShardRef) -> bytes:
        chunk = self.outcome[shard.view, shard.start : shard.stop].tobytes()
        return chunk.ljust(self.layout.shard_samples, b"\0")

    def _require_digest(self, name: str, *pieces: Buffer) -> None:
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        if digest.hexdigest() != self.digests.get(name):
            raise self._damaged(name)

    def _damaged(self, what: str) -> FeatureFileError:
        return FeatureFileError(
            "this file does not hold the numbers that were exported.",
            file=self.path,
            differs_in=what,
            next="export the store again",
        )
