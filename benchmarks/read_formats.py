"""The same samples in the formats of several libraries, and a function for each that reads a batch.

Every format is the one that its library reads fastest here: a chunk for each sample, uncompressed,
without checksums where that can be chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
import zarr
from zarr.codecs import BytesCodec

from benchmarks.synthetic import write_store
from rdcache.store import Store, StoreLayout, TapSpec

TAP = "layer4"
SAMPLE = (2048, 7, 7)  # ResNet-50's layer4, 200,704 bytes in float16
BATCH = 32


@dataclass(frozen=True)
class Reader:
    """One way to read a batch.

    Attributes:
        read: sample numbers (B,) → the samples, (B, *SAMPLE). Readers that only go through their
            files in order give the next B, whatever is asked for; they begin with the first.
    """

    name: str
    read: Callable[[np.ndarray], Any]


def write_truth(folder: Path, samples: int) -> tuple[Path, Path]:
    """The samples as a store, and one after the other in a plain file."""
    layout = StoreLayout.plan([TapSpec(TAP, "map2d", SAMPLE)], (samples,))
    store = write_store(folder / "store", layout)
    plain = folder / "plain.bin"
    with plain.open("wb") as file:
        for shard in layout.shards():
            file.write(store.read(range(shard.start, shard.stop), 0)[TAP].numpy().data)
    return folder / "store", plain


def open_plain(path: Path) -> np.memmap[Any, Any]:
    """The plain file as float16 (samples, *SAMPLE)."""
    samples = path.stat().st_size // (2 * int(np.prod(SAMPLE)))
    return np.memmap(path, np.float16, "r", shape=(samples, *SAMPLE))


def readers(folder: Path, store: Store, plain: Path) -> list[Reader]:
    """All of them, their formats written below a folder; says which are not installed."""
    truth, mapped = open_plain(plain), open_plain(plain)  # what the first touches stays in memory
    found = [
        Reader("np.memmap, fancy indexing", lambda picks: mapped[picks]),
        *_rdcache(store),
        *_zarrs(folder, store, truth),
        _h5py(folder, truth),
    ]
    for name, make in {"litdata": _litdata, "webdataset": _webdataset}.items():
        if find_spec(name) is None:
            print(f"{name} is left out: it is not installed (the extra `bench` has it).")
        else:
            found.append(make(folder, truth))
    return found


def _rdcache(store: Store) -> Iterator[Reader]:
    buffers = store.empty_batch(BATCH)
    yield Reader("rdcache, reused buffer", lambda picks: store.read(picks, 0, out=buffers)[TAP])
    yield Reader("rdcache, fresh batch", lambda picks: store.read(picks, 0)[TAP])


def _zarrs(folder: Path, store: Store, truth: np.ndarray) -> Iterator[Reader]:
    """zarr-python and tensorstore, each on a plain Zarr v3 array and on rdcache's store."""
    own = zarr.create_array(
        folder / "plain.zarr",
        shape=truth.shape,
        chunks=(1, *SAMPLE),
        dtype="float16",
        serializer=BytesCodec(),
        compressors=None,
        filters=None,
    )
    for number, sample in enumerate(truth):
        own[number] = sample
    stored = store.array(TAP)

    def one_by_one(array: Callable[[int], Any]) -> Callable[[np.ndarray], np.ndarray]:
        return lambda picks: np.stack([array(pick) for pick in picks.tolist()])

    yield Reader("zarr-python a[i], its own array", one_by_one(own.__getitem__))
    yield Reader("zarr-python a[i], the store", one_by_one(lambda pick: stored[0, pick]))
    if find_spec("tensorstore") is None:
        print("tensorstore is left out: it is not installed (the extra `bench` has it).")
        return
    plain = _tensorstore(folder / "plain.zarr")
    yield Reader("tensorstore, its own array", lambda picks: plain[picks].read().result())
    inside = _tensorstore(folder / "store" / "taps" / TAP)[0]
    yield Reader("tensorstore, the store", lambda picks: inside[picks].read().result())


def _tensorstore(path: Path) -> Any:
    import tensorstore

    kvstore = {"driver": "file", "path": str(path)}
    return tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()


def _h5py(folder: Path, truth: np.ndarray) -> Reader:
    with h5py.File(folder / "plain.h5", "w") as file:
        written = file.create_dataset("tap", truth.shape, "f2", chunks=(1, *SAMPLE))
        for number, sample in enumerate(truth):
            written[number] = sample
    tap = h5py.File(folder / "plain.h5")["tap"]
    batch = np.empty((BATCH, *SAMPLE), np.float16)

    def read(picks: np.ndarray) -> np.ndarray:
        for row, pick in enumerate(picks.tolist()):
            tap.read_direct(batch, np.s_[pick], np.s_[row])
        return batch

    return Reader("h5py read_direct", read)


def _litdata(folder: Path, truth: np.ndarray) -> Reader:
    import litdata
    from litdata.streaming.writer import BinaryWriter

    place = folder / "litdata"
    place.mkdir()
    writer = BinaryWriter(str(place), chunk_bytes=2**26)
    for number, sample in enumerate(truth):
        writer[number] = {"tap": np.array(sample)}
    writer.done()
    writer.merge(1)
    dataset = litdata.StreamingDataset(str(place), shuffle=False)
    return _in_order("litdata, in order", lambda: (sample["tap"] for sample in dataset))


def _webdataset(folder: Path, truth: np.ndarray) -> Reader:
    import webdataset

    path = str(folder / "plain.tar")
    with webdataset.TarWriter(path) as writer:
        for number, sample in enumerate(truth):
            writer.write({"__key__": f"{number:08d}", "bin": sample.tobytes()})
    dataset = webdataset.WebDataset(path, shardshuffle=False)

    def samples() -> Iterator[np.ndarray]:
        for sample in dataset:
            yield np.frombuffer(sample["bin"], np.float16).reshape(SAMPLE)

    return _in_order("webdataset, in order", samples)


def _in_order(name: str, samples: Callable[[], Iterator[np.ndarray]]) -> Reader:
    """Batches of samples that come one after the other, again and again."""

    def batches() -> Iterator[Sequence[np.ndarray]]:
        while True:
            running = samples()
            while len(batch := list(islice(running, BATCH))) == BATCH:
                yield batch

    under_way = batches()
    return Reader(name, lambda picks: np.stack(next(under_way)))


def equals(batch: Any, expected: np.ndarray) -> bool:
    """Whether a batch, of whichever library, is these numbers to the bit."""
    numbers = batch.numpy() if isinstance(batch, torch.Tensor) else np.asarray(batch)
    return numbers.dtype == expected.dtype and numbers.tobytes() == expected.tobytes()
