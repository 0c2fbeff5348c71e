"""A store as one HDF5 file, which `hdf5_import.py` makes the same store again."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import TYPE_CHECKING

import h5py
import numpy as np

from rdcache.errors import CorruptShardError, FileWriteError, StoreIncompleteError
from rdcache.files import write_whole
from rdcache.progress import Progress, ignore
from rdcache.store import arrays
from rdcache.store.gather import as_stored
from rdcache.store.hdf5 import DTYPE_ATTRIBUTE, runs
from rdcache.store.manifest import ATTRIBUTE
from rdcache.store.objects import ReadableObjects
from rdcache.store.reader import Store
from rdcache.store.spec import SPLITS, StoreLayout, TapSpec

if TYPE_CHECKING:
    from typing_extensions import Buffer  # of `collections.abc` from Python 3.12 on

LIBRARY_VERSIONS = ("v110", "v110")  # every HDF5 since 2016 reads the file


def export_hdf5(
    store: Store, path: Path, *, overwrite: bool = False, on_progress: Progress = ignore
) -> None:
    """Write a complete store as one HDF5 file, shard by shard, whole or not at all.

    Every payload is compared with its checksum on the way.

    Raises:
        FileWriteError: a file is there already, or the file cannot be written.
        StoreIncompleteError, CorruptShardError: the store is not whole.
    """
    if not store.complete:
        raise StoreIncompleteError(
            "only a complete store is exported.",
            store=store.location,
            next="run the `rdcache extract` that makes it again; it goes on where it stopped",
        )
    if path.exists() and not (overwrite and path.is_file()):
        raise FileWriteError(
            "there is something of this name already.",
            found=path,
            next="choose another name" + (", or pass --overwrite" if path.is_file() else ""),
        )

    def write(partial: Path) -> None:
        with _Sink(partial, "w+b") as sink:

            def report(done: int, total: int, note: str = "") -> None:
                sink.require_written()
                on_progress(done, total, note)

            with h5py.File(sink, "w", libver=LIBRARY_VERSIONS) as file:
                _write_store(file, store, report)
            sink.require_written()

    try:
        write_whole(path, write)
    except FileWriteError as error:
        if isinstance(error.__cause__, CorruptShardError):  # the store's fault, not the file's
            raise error.__cause__ from None
        raise


class _Sink(io.FileIO):
    """A file that keeps its first error to itself: HDF5 does not survive one of a full disk."""

    error: OSError | None = None

    def write(self, data: Buffer) -> int:
        """Write all of the data, unless something went wrong before."""
        rest = memoryview(data).cast("B")
        count = len(rest)
        try:
            while self.error is None and rest:
                rest = rest[super().write(rest) or 0 :]
        except OSError as error:
            self.error = error
        return count

    def truncate(self, size: int | None = None) -> int:
        """Change the length of the file, unless something went wrong before."""
        try:
            if self.error is None:
                super().truncate(size)
        except OSError as error:
            self.error = error
        return size or 0

    def require_written(self) -> None:
        """Raise the first error, if there was any."""
        if self.error is not None:
            raise self.error


def _write_store(file: h5py.File, store: Store, on_progress: Progress) -> None:
    layout, table = store.layout, store.sample_table()
    file.attrs[ATTRIBUTE] = json.dumps(store.manifest, allow_nan=False)
    _write(file, "uid", np.array(table.uids, "S32"), "sample")
    columns = table.columns()
    _write(file, "label", columns["label"], *arrays.label_axes(layout))
    _write(file, "split", columns["split"], "sample").attrs["names"] = SPLITS
    _write(file, "group", columns["group"], "sample")
    view = _write(file, "view", store.view_parameters, "view", "sample", "parameter")
    view.attrs["columns"] = store.view_columns
    for name, projection in store.projections.items():
        channel, before = f"{name}_channel", f"{name}_teacher_channel"
        _write(file, f"taps/{name}.basis", projection.basis.numpy(), channel, before)
        _write(file, f"taps/{name}.mean", projection.mean.numpy(), before)
    taps = {tap.name: _create_tap(file, layout, tap) for tap in layout.taps}
    outcome = np.zeros((layout.views, layout.samples), np.uint8)
    receipt_shape = (layout.views, layout.shards_per_view, len(layout.taps), arrays.DIGEST_BYTES)
    receipt = np.zeros(receipt_shape, np.uint8)
    objects = store.objects
    done, total = 0, sum(layout.extents)
    for shard in layout.shards():
        stored = store.available(range(shard.start, shard.stop), shard.view)
        for start, stop in runs(stored):
            samples = range(shard.start + start, shard.start + stop)
            for name, dataset in taps.items():
                rows = store.read_stored(samples, shard.view, [name], verify=True)[name]
                dataset[shard.view, samples.start : samples.stop] = as_stored(rows)
        outcome[shard.view, shard.start : shard.stop] = _object(
            objects, arrays.outcome_object(shard), layout.shard_samples
        )[: shard.stop - shard.start]
        receipt[shard.view, shard.index] = _object(
            objects, arrays.receipt_object(shard), receipt[0, 0].nbytes
        ).reshape(receipt_shape[2:])
        done += shard.stop - shard.start
        on_progress(done, total, "samples")
    _write(file, "outcome", outcome, "view", "sample")
    _write(file, "receipt", receipt, "view", "shard", "tap", "receipt_byte")


def _create_tap(file: h5py.File, layout: StoreLayout, tap: TapSpec) -> h5py.Dataset:
    """An empty dataset (view, sample, *tap), a chunk for each sample; absent ones take no space."""
    dataset = file.create_dataset(
        f"taps/{tap.name}",
        (layout.views, layout.samples, *tap.shape),
        tap.stored_dtype.newbyteorder("<"),
        chunks=(1, 1, *tap.shape),
    )
    dataset.attrs.update({DTYPE_ATTRIBUTE: tap.dtype, "kind": tap.kind})
    return _labelled(dataset, "view", "sample", *tap.axes)


def _write(file: h5py.File, name: str, values: np.ndarray, *axes: str) -> h5py.Dataset:
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return _labelled(file.create_dataset(name, data=little), *axes)


def _labelled(dataset: h5py.Dataset, *axes: str) -> h5py.Dataset:
    for number, axis in enumerate(axes):
        dataset.dims[number].label = axis
    return dataset


def _object(objects: ReadableObjects, name: str, nbytes: int) -> np.ndarray:
    data = objects.get(name, nbytes)
    if data is None:
        raise CorruptShardError(
            "an object of this store is missing or cut short.", store=objects.location, file=name
        )
    return np.frombuffer(data, np.uint8)
